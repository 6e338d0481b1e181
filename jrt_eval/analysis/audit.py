"""Names the protocol that each task of a folder of lm-eval results used, and warns about what makes numbers incomparable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError

CLOSED_BOOK = ("nq_open", "triviaqa")
UNWINDOWED = ("swde", "fda", "squad_completion")
# (context_length, answer_length) -> the protocol
WINDOWS: dict[tuple[Any, Any], str] = {
    (1000, 50): "the paper's Table 1 (window of 950 tokens)",
    (2048, 50): "2,048 tokens (window of 1,998 tokens)",
    (2048, 48): "2,048 tokens as MoM ran it (window of 2,000 tokens)",
}
_RECALL = re.compile(r"^jrt_(2k_)?(swde|fda|squad|drop|triviaqa|nq_\d+)(_|$)")
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json$")


@dataclass
class TaskAudit:
    """One task of one run. protocol: what was run, in words. warnings: what a reader of its score must know."""

    file: str
    task: str
    protocol: str
    warnings: list[str] = field(default_factory=list)


def audit(folder: str | Path) -> list[TaskAudit]:
    """An audit of every task under `folder`, in the order of the result files. Raises `UserError` if there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = [entry for path in sorted(root.rglob("*results_*.json")) for entry in _audit_file(root, path)]
    if not found:
        raise UserError(f"no lm-eval results in {folder}: it must hold results_*.json")
    return found


def _audit_file(root: Path, path: Path) -> Iterator[TaskAudit]:
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return  # `jrt-eval collect` reports files that cannot be read
    if not isinstance(data, Mapping):
        return
    groups = _mapping(data.get("group_subtasks"))
    members = {task for names in groups.values() if isinstance(names, list) for task in names}
    for task, config in _mapping(data.get("configs")).items():
        metadata = _mapping(_mapping(config).get("metadata"))
        entry = TaskAudit(str(path.relative_to(root)), str(task), *_protocol(str(task), metadata))
        entry.warnings += _truncation(metadata, _mapping(_mapping(data.get("results")).get(task)))
        entry.warnings += _samples(path, str(task))
        if entry.task in CLOSED_BOOK and set(UNWINDOWED) & members | {t for t in members if _RECALL.match(str(t))}:
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
        if named or not _RECALL.match(base)
        else [f"context_length {length}, answer_length {answer}: no paper's protocol"]
    )
    expected = 2048 if base.startswith("jrt_2k_") else 1000
    if named and length != expected and _RECALL.match(base) and expected == 2048:
        warnings.append(f"context_length is {length}, but this task's protocol has {expected}")
    return (named or f"a window of {length} - {answer} tokens") + suffix, warnings


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def _truncation(metadata: Mapping[str, Any], scores: Mapping[str, Any]) -> list[str]:
    record = _mapping(metadata.get("jrt"))
    cut, prompts = record.get("truncated"), record.get("prompts")
    if not isinstance(cut, int):
        cut, prompts = _mapping(record.get("costs")).get("truncated"), _mapping(record.get("costs")).get("requests")
    if not isinstance(cut, int) or not cut:
        return []
    what = "their beginning" if record.get("variant") in (None, "once") else "their question"
    return [f"{cut} of {prompts} prompts were cut from the left and lost {what}"]


def _samples(path: Path, task: str) -> list[str]:
    """Warnings that only the prompts themselves can give: from the sample file of the same run, if it was written."""
    date = _DATE.search(path.name)
    file = path.with_name(f"samples_{task}_{date[1]}.jsonl") if date else None
    if file is None or not file.is_file():
        return []
    blank = total = 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (prompt := _prompt(line)) is not None:
                total += 1
                blank += prompt != prompt.rstrip(" \t")
    return [f"{blank} of {total} prompts end with a blank, which can cost many points"] if blank else []


def _prompt(line: str) -> str | None:
    try:
        arguments = json.loads(line)["arguments"]
        first = arguments[0] if isinstance(arguments, list) else arguments["gen_args_0"]
        prompt = first[0] if isinstance(first, list) else first["arg_0"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return prompt if isinstance(prompt, str) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
