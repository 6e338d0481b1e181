"""The model types, tasks and groups that lm-eval knows. Imports neither torch nor a data set."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.plugin import register_models, task_folder
from jrt_eval.settings import shown

if TYPE_CHECKING:
    from jrt_eval.prompts.derived import VariantIndex


def check_model_types(types: Iterable[tuple[str, str]]) -> None:
    """Raise `UserError` for a model type that lm-eval does not know. types: (type, where it was given)."""
    import lm_eval.models  # noqa: F401 - fills the registry with names, imports no backend
    from lm_eval.api.registry import model_registry

    register_models()  # for interpreters where the start-up hook is off
    known = list(model_registry.keys())
    for kind, where in types:
        if kind not in known:
            raise UserError(
                f"unknown model type {shown(kind)} in {where}{nearest(kind, known)}; "
                "lm-eval has, among others: jrt, hf, vllm"
            )


class Catalogue:
    """lm-eval's index of tasks, with ours and those of `include_path`."""

    def __init__(self, include_path: Iterable[str] = ()) -> None:
        self._folders = list(include_path)
        for folder in self._folders:
            if not os.path.isdir(folder):
                raise UserError(f"'include_path': no folder {folder}")
        # The user's tasks replace ours of the same name, and ours those of lm-eval. lm-eval's own are thousands of files, which take
        # seconds to read, so they are read only when a name is not among the others.
        self._index = _index([str(task_folder()), *self._folders], include_defaults=False)
        self._complete = False

    def expand(self, names: Iterable[str], where: str) -> list[str]:
        """The single tasks that `names` (tasks, groups, tags) stand for, in order, each once."""
        return list(dict.fromkeys(task for name in names for task in self._leaves(name, where, ())))

    def digest(self, task: str) -> str:
        """A hash of the files that define a task: its YAML, the YAML files it includes, and the Python files in its folder.

        An edited task therefore runs again, even if its version was not changed.
        """
        digest = hashlib.sha256()
        path = self._yaml(task)
        files = sorted(path.parent.glob("*.py")) if path else []
        while path is not None and path.is_file() and path not in files:
            files.append(path)
            include = re.search(r"^include:[ ]*[\"']?([^\s\"'#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            path = (path.parent / include[1]).resolve() if include else None
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:16]

    def _yaml(self, task: str) -> Path | None:
        path = self._index[self._index.origin(task)].yaml_path
        return Path(path) if path else None

    def _leaves(self, name: str, where: str, above: tuple[str, ...]) -> Iterator[str]:
        if name not in self._index and not self._complete:
            self._index = type(self._index)({**_lm_evals_own(), **self._index})
            self._complete = True
        if name not in self._index:
            known = list(self._index)
            ours = [task for task in known if task.startswith(("jrt_", "based_"))]
            hint = nearest(name, ours) or nearest(name, known)
            raise UserError(f"unknown task {shown(name)} in {where}{hint}; `lm_eval ls tasks` lists them")
        entry = self._index[name]
        kind = entry.kind.name
        if kind == "TAG":
            for member in sorted(entry.tags):
                yield from self._leaves(member, where, (*above, name))
        elif kind == "GROUP":
            for member in self._members(name):
                if not isinstance(member, str) or member in above:
                    # A task that the group defines or changes in place has no name outside the group.
                    raise UserError(
                        f"group {name!r} in {where} defines tasks in place, which a sweep cannot record one by one: "
                        "name its tasks"
                    )
                yield from self._leaves(member, where, (*above, name))
        else:
            yield name

    def _members(self, group: str) -> list[Any]:
        members = (self._index[group].cfg or {}).get("task") or []
        return [
            member["task"] if isinstance(member, dict) and set(member) == {"task"} else member
            for member in ([members] if isinstance(members, str) else members)
        ]


@cache
def _lm_evals_own() -> dict[str, Any]:
    return _index([], include_defaults=True)


def _index(folders: list[str], *, include_defaults: bool) -> VariantIndex:
    from lm_eval.tasks import TaskManager

    from jrt_eval.prompts.derived import VariantIndex  # imports lm-eval

    return VariantIndex(TaskManager(include_path=folders or None, include_defaults=include_defaults).task_index)
