"""Everything that lm-eval learns from us: model names, where our tasks are, and the variants of every task.

lm-eval 0.4.12 and 0.4.13 discover no plugins, so `jrt_eval_autoload` calls `register_models` and `register_tasks` when
lm-eval's registry and its task package have been imported. Later releases read the entry points in pyproject.toml for
models; `register_models` then does nothing.
"""

from __future__ import annotations

import functools
from typing import Any

from jrt_eval.errors import install_excepthook
from jrt_eval.prompts.folder import task_folder

__all__ = ["MODELS", "register", "register_evaluator", "register_models", "register_tasks", "task_folder"]

_NOTE = """\
jrt-eval: every task, group and tag in this list, and of --include_path, can also be run as NAME_twice (the prompt's
question is read twice), NAME_thrice, NAME_verbose, and as the controls NAME_question_first and NAME_padded."""

MODELS = dict.fromkeys(("jrt", "jrt_lm", "based_lm"), "jrt_eval.model_adapters.jrt:JRTLM")


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
    """Make our tasks, and the variants of every task, known to lm-eval's `TaskManager`.

    Our task folder comes after lm-eval's own and before the user's `include_path`. Later folders win, so a user's task
    replaces ours of the same name.
    """
    from lm_eval.tasks import TaskManager

    if getattr(TaskManager, "_jrt_eval", False):
        return
    original_init, original_match, original_list = (
        TaskManager.__init__,
        TaskManager.match_tasks,
        TaskManager.list_all_tasks,
    )

    @functools.wraps(original_init)
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
        original_init(self, verbosity, folders or None, include_defaults, metadata)
        self.include_path = include_path
        _add_variants(self)

    @functools.wraps(original_match)
    def match_tasks(self: Any, task_list: Any) -> list[str]:
        patterns = [task_list] if isinstance(task_list, str) else list(task_list)
        known = original_match(self, patterns)
        return sorted({*known, *(name for pattern in patterns for name in self.task_index.matching(pattern))})

    @functools.wraps(original_list)
    def list_all_tasks(self: Any, *args: Any, **kwargs: Any) -> str:
        return f"{original_list(self, *args, **kwargs)}{_NOTE}\n"

    TaskManager.__init__ = init
    TaskManager.match_tasks = match_tasks
    TaskManager.list_all_tasks = list_all_tasks
    TaskManager._jrt_eval = True


def _add_variants(manager: Any) -> None:
    """Let `manager` derive variants, and list those of our own tasks that are read twice."""
    from lm_eval.tasks._index import Kind

    from jrt_eval.prompts.derived import VariantIndex, variant_name

    manager._index = index = VariantIndex(manager._index)
    lists = {Kind.GROUP: manager._all_groups, Kind.TAG: manager._all_tags}
    for name, entry in list(index.items()):
        config = entry.cfg or {}
        ours = "document" in config or name == "jrt_once" or (entry.kind is Kind.TAG and name.startswith("based_"))
        twice = variant_name(name, "twice")
        if ours and twice not in manager._all_tasks:
            manager._all_tasks.append(twice)
            lists.get(entry.kind, manager._all_subtasks).append(twice)
    for names in (manager._all_tasks, manager._all_subtasks, manager._all_groups, manager._all_tags):
        names.sort()


def register_evaluator() -> None:
    """Let lm-eval's evaluator record what tasks cost, and tell tasks about a model that is given as an object."""
    from lm_eval import evaluator

    from jrt_eval.prompts import costs
    from jrt_eval.prompts.evaluated import evaluating

    if getattr(evaluator, "_jrt_eval", False):
        return
    original = evaluator.simple_evaluate

    @functools.wraps(original)
    def simple_evaluate(model: Any, *args: Any, **kwargs: Any) -> Any:
        with evaluating(None if isinstance(model, str) else model):
            results = original(model, *args, **kwargs)
        if results is not None:
            costs.record_throughput(results)
        return results

    evaluator.evaluate = costs.recording(evaluator.evaluate)
    evaluator.simple_evaluate = simple_evaluate
    evaluator._jrt_eval = True


def register() -> None:
    """Register models and tasks in lm-eval now, for interpreters in which the start-up hook is off."""
    register_models()
    register_tasks()
    register_evaluator()
