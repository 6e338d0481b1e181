"""Names the protocol that each task of a folder of lm-eval results used, and warns about what makes numbers incomparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jrt_eval.analysis import samples
from jrt_eval.analysis.protocols import CLOSED_BOOK, RECALL, UNWINDOWED, WINDOWS
from jrt_eval.analysis.tree import find_results
from jrt_eval.errors import UserError


@dataclass
class TaskAudit:
    """One task of one run. protocol: what was run, in words. warnings: what a reader of its score must know."""

    file: str
    task: str
    protocol: str
    warnings: list[str] = field(default_factory=list)


def audit(folder: str | Path) -> list[TaskAudit]:
    """An audit of every task under `folder`, in the order of the result files. Raises `UserError` if there are none.

    Files that are no results are passed over; `jrt-eval collect` reports them.
    """
    found = [entry for path, data, prompts in find_results(Path(folder)) for entry in _audit_file(path, data, prompts)]
    if not found:
        raise UserError(f"no lm-eval results in {folder}: name the folder that --output_path wrote to")
    return found


def _audit_file(path: str, data: Mapping[str, Any], prompts: Mapping[str, Path]) -> Iterator[TaskAudit]:
    groups = _mapping(data.get("group_subtasks"))
    members = {task for names in groups.values() if isinstance(names, list) for task in names}
    configs = _mapping(data.get("configs"))  # lm-eval before 0.4 wrote none
    for task in configs or [name for name in data["results"] if name not in groups]:
        metadata = _mapping(_mapping(configs.get(task)).get("metadata"))
        entry = TaskAudit(path, str(task), *_protocol(str(task), metadata))
        entry.warnings += _truncation(metadata)
        entry.warnings += _blanks(prompts.get(str(task)))
        if entry.task in CLOSED_BOOK and set(UNWINDOWED) & members | {t for t in members if RECALL.match(str(t))}:
            entry.warnings.append("in one run with recall tasks: do not report it in their table")
        yield entry


def _protocol(task: str, metadata: Mapping[str, Any]) -> tuple[str, list[str]]:
    record = _mapping(metadata.get("jrt"))
    base = str(record.get("base_task") or task)
    variant = str(record.get("variant") or "once")
    if base in CLOSED_BOOK:
        return "closed-book questions", ["no document is shown: this measures knowledge, not recall"]
    suffix = "" if variant == "once" else f", variant {variant}"
    if base in UNWINDOWED:
        return f"lm-eval's own task on whole documents{suffix}", []
    if "document" not in metadata:
        return f"lm-eval's {base}{suffix}", []
    length, answer = record.get("context_length"), record.get("answer_length")
    if length is None:
        return f"whole documents{suffix}", []
    if (depth := record.get("answer_depth")) is not None:
        return f"windows of {_listed(length)} - {answer} tokens with the answer at depth {_listed(depth)}{suffix}", []
    if isinstance(length, list):
        return f"windows of {_listed(length)} - {answer} tokens{suffix}", []
    named = WINDOWS.get((length, answer))
    warnings = (
        []
        if named or not RECALL.match(base)
        else [f"context_length {length}, answer_length {answer}: no paper's protocol"]
    )
    expected = 2048 if base.startswith("jrt_2k_") else 1000
    if named and length != expected and RECALL.match(base) and expected == 2048:
        warnings.append(f"context_length is {length}, but this task's protocol has {expected}")
    return (named or f"a window of {length} - {answer} tokens") + suffix, warnings


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def _truncation(metadata: Mapping[str, Any]) -> list[str]:
    record = _mapping(metadata.get("jrt"))
    cut, prompts = record.get("truncated"), record.get("prompts")
    if not isinstance(cut, int):
        cut, prompts = _mapping(record.get("costs")).get("truncated"), _mapping(record.get("costs")).get("requests")
    if not isinstance(cut, int) or not cut:
        return []
    on_truncation = _mapping(record.get("costs")).get("on_truncation")
    if on_truncation == "skip":
        return [f"{cut} of {prompts} prompts were too long: their documents have no score"]
    if on_truncation == "middle":
        return [f"{cut} of {prompts} prompts lost their middle"]
    what = "their beginning" if record.get("variant") in (None, "once") else "their question"
    return [f"{cut} of {prompts} prompts were cut from the left and lost {what}"]


def _blanks(file: Path | None) -> list[str]:
    """A warning that only the prompts themselves can give."""
    ends = [prompt != prompt.rstrip(" \t") for prompt in samples.prompts(file)] if file is not None else []
    return [f"{sum(ends)} of {len(ends)} prompts end with a blank, which can cost many points"] if any(ends) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
