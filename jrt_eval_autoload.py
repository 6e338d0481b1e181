"""Start-up hook: registers jrt-eval in lm_eval when, and only when, lm_eval is imported.

`jrt_eval_autoload.pth` imports this module in every interpreter of the environment, so it imports nothing but `sys`,
costs well under a millisecond and never raises. It stands beside the package because importing a package runs its
`__init__`. JRT_EVAL_AUTOLOAD=0 turns it off; `jrt_eval.register()` does the same by hand.
"""

import sys

# When one of these has been imported, the function of jrt_eval.plugin named here is called.
_AFTER_IMPORT = {
    "lm_eval.api.registry": "register_models",
    "lm_eval.tasks": "register_tasks",
}


class _Loader:
    """Delegates to the real loader; calls us once the module stands."""

    def __init__(self, loader, function):
        self._loader = loader
        self._function = function

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            from jrt_eval import plugin

            getattr(plugin, self._function)()
        except Exception as error:  # noqa: BLE001 - a hook must never break the program it hooks into
            print(f"jrt-eval: could not register in lm_eval: {error!r}", file=sys.stderr)


class _Finder:
    """First on sys.meta_path; answers only for the two modules above, and once for each."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _AFTER_IMPORT:
            return None
        function = _AFTER_IMPORT.pop(name)
        if not _AFTER_IMPORT:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Finder]
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is _Finder or find_spec is None:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, function)
                return spec
        return None


def _install():
    import os

    if os.environ.get("JRT_EVAL_AUTOLOAD", "1") != "0" and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


_install()
