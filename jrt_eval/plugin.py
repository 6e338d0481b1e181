"""Everything that lm-eval learns from us: which model names reach which adapter, and where the tasks are.

lm-eval 0.4.10 to 0.4.13 discover nothing, so `jrt_eval_autoload` calls the two functions below when lm-eval's registry
and its task package have been imported; coming releases read the entry points that pyproject.toml declares, and then
`register_models` finds the names taken by the same target and leaves them alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jrt_eval.errors import install_excepthook

MODELS = {name: "jrt_eval.model_adapters.jrt:JRTLM" for name in ("jrt", "jrt_lm", "based_lm")}


def task_folder() -> Path:
    """The folder of our YAML tasks: in the installed package, or at the root of the checkout (editable install)."""
    package = Path(__file__).parent
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def register_models() -> None:
    """Make `--model jrt` and its aliases known to lm-eval's registry, lazily: no adapter is imported."""
    from lm_eval.api.registry import model_registry

    install_excepthook()
    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def register_tasks() -> None:
    """Put our task folder on every `TaskManager`'s search path, before any `include_path` of the user's."""
    from lm_eval.tasks import TaskManager

    if getattr(TaskManager.__init__, "_jrt_eval", False):
        return
    original = TaskManager.__init__

    @functools.wraps(original)
    def init(
        self: Any,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        theirs = [] if include_path is None else include_path
        theirs = list(theirs) if isinstance(theirs, (list, tuple)) else [theirs]
        ours = [str(task_folder())] if include_defaults else []
        original(self, verbosity, [*ours, *theirs] or None, include_defaults, metadata)
        self.include_path = include_path

    init._jrt_eval = True  # type: ignore[attr-defined]
    TaskManager.__init__ = init


def register() -> None:
    """Register models and tasks in lm-eval now; for interpreters where the start-up hook is off."""
    register_models()
    register_tasks()
