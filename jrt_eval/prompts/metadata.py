"""The settings that a run passes to tasks through `--metadata`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jrt_eval.errors import UserError

SETTINGS = (
    "context_length",
    "answer_length",
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
    for key in sorted(set(map(str, metadata)) - set(SETTINGS)):
        if close := get_close_matches(key, SETTINGS, n=1, cutoff=0.85):
            raise UserError(f"task {task}: metadata has no key {key!r}; did you mean {close[0]!r}?")
