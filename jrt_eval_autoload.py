"""Start-up hook: registers jrt-eval in lm_eval when, and only when, lm_eval is imported.

`jrt_eval_autoload.pth` imports this module in every interpreter of the environment. It therefore imports only modules that are already
loaded, costs well under a millisecond and never raises. It is a module of its own because importing one from a package would run the
package's `__init__`. JRT_EVAL_AUTOLOAD=0 (or false, no, off, or an empty value) turns it off; `jrt_eval.register()` registers explicitly.
"""

import os
import sys

# After the import of one of these modules, the function of jrt_eval.plugin named here is called.
_PENDING = {
    "lm_eval.api.registry": "register_models",
    "lm_eval.tasks": "register_tasks",
    "lm_eval.evaluator": "register_evaluator",
}


def switched_off():
    """Whether the environment turns the hook off."""
    return os.environ.get("JRT_EVAL_AUTOLOAD", "1").strip().lower() in ("", "0", "false", "no", "off")


class _Loader:
    """Loads a module with the module's own loader, then calls our function."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        function = _PENDING.pop(module.__name__, None)
        if not _PENDING and Finder in sys.meta_path:
            sys.meta_path.remove(Finder)
        if function is None:
            return
        try:
            from jrt_eval import plugin

            getattr(plugin, function)()
        except Exception as error:  # noqa: BLE001 - a hook must never break the program that it is loaded into
            print(f"jrt-eval: not registered in lm_eval: {error!r} (see `jrt-eval doctor`)", file=sys.stderr)


class Finder:
    """The first finder on sys.meta_path; handles the pending modules only."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _PENDING:
            return None
        for finder in sys.meta_path:
            if finder is cls or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


if not switched_off():
    sys.meta_path.insert(0, Finder)
