"""The settings that a run passes to tasks through `--metadata`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jrt_eval.errors import UserError

SETTINGS = (
    "context_length",
    "answer_length",
    "answer_depth",
    "documents",
    "data_dir",
    "dataset",
    "tokenizer",
    "max_length",
    "repeat",
    "separator",
    "question",
)


def refuse_misspelt(metadata: Mapping[str, Any], task: str | None) -> None:
    """Raise `UserError` for a key that is nearly one of ours. Other keys may belong to other tasks or to the model."""
    for key in sorted(set(map(str, metadata)) - {*SETTINGS, "document"}):  # tasks record their `document:` there
        if close := get_close_matches(key, SETTINGS, n=1, cutoff=0.85):
            raise UserError(f"task {task}: metadata has no key {key!r}; did you mean {close[0]!r}?")


def count_of(metadata: Mapping[str, Any], key: str, task: str | None) -> int | None:
    """The setting `key`, an integer of at least 1, or None where it is null or missing. Raises `UserError`."""
    value = metadata.get(key)
    if value is None:
        return None
    number = int(value) if str(value).isdigit() or (isinstance(value, float) and value.is_integer()) else 0
    if number < 1 or isinstance(value, bool):
        raise UserError(f"task {task}: metadata {key} must be an integer of at least 1, got {value!r}")
    return number
