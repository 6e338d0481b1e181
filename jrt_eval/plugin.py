"""Registers our model names and our folder of tasks in lm-eval.

lm-eval up to 0.4.13 discovers no plugins, so `jrt_eval_autoload` calls `register_models` and `register_tasks` after lm-eval's registry
and its task package have been imported. Later releases find the models through the entry points in pyproject.toml; there
`register_models` does nothing.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jrt_eval.errors import install_excepthook

MODELS = dict.fromkeys(("jrt", "jrt_lm", "based_lm"), "jrt_eval.model_adapters.jrt:JRTLM")


def task_folder() -> Path:
    """The folder of our YAML tasks: inside the installed package, or at the root of the checkout it runs from."""
    package = Path(__file__).parent
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def register_models() -> None:
    """Register `--model jrt` and its aliases. The adapter is imported only when it is used."""
    from lm_eval.api import registry

    install_excepthook()
    if hasattr(registry, "load_plugins"):  # this lm-eval reads our entry points
        return
    # lm-eval fills its registry on the first look-up only if it is empty, so its own models must come first.
    import lm_eval.models  # noqa: F401

    for name, target in MODELS.items():
        if name not in registry.model_registry:
            registry.model_registry.register(name, target=target)


def register_tasks() -> None:
    """Add our task folder to the search path of every `TaskManager`.

    It comes after lm-eval's own tasks and before the user's `include_path`. Later folders take precedence, so a user's task replaces ours
    of the same name.
    """
    from lm_eval.tasks import TaskManager

    original = TaskManager.__init__
    if getattr(original, "_jrt_eval", False):
        return

    @functools.wraps(original)
    def init(
        self: Any,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        users = [] if include_path is None else include_path
        folders = [*users] if isinstance(users, (list, tuple)) else [users]
        if include_defaults:
            folders.insert(0, str(task_folder()))
        original(self, verbosity, folders or None, include_defaults, metadata)
        self.include_path = include_path

    init._jrt_eval = True  # type: ignore[attr-defined]
    TaskManager.__init__ = init


def register() -> None:
    """Register models and tasks in lm-eval now, for interpreters in which the start-up hook is off."""
    register_models()
    register_tasks()
