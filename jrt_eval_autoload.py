"""Start-up hook: registers jrt-eval in lm_eval when, and only when, lm_eval is imported.

`jrt_eval_autoload.pth` imports this module in every interpreter of the environment, so it imports nothing that is not
loaded already, costs well under a millisecond and never raises. It stands beside the package because importing a
package runs its `__init__`. JRT_EVAL_AUTOLOAD=0 turns it off; `jrt_eval.register()` does the same by hand.
"""

import os
import sys

# Once one of these modules has been imported, the function of jrt_eval.plugin named here is called.
_PENDING = {
    "lm_eval.api.registry": "register_models",
    "lm_eval.tasks": "register_tasks",
}


class _Loader:
    """Delegates to the module's own loader, then calls us."""

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
        except Exception as error:  # noqa: BLE001 - a hook must never break the program that it hooks into
            print(f"jrt-eval: not registered in lm_eval: {error!r} (see `jrt-eval doctor`)", file=sys.stderr)


class Finder:
    """Stands first on sys.meta_path and answers for the pending modules only."""

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


if os.environ.get("JRT_EVAL_AUTOLOAD") != "0":
    sys.meta_path.insert(0, Finder)
