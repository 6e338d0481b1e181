"""Protocols: what papers call "recall on FDA" and the like, told apart by task, window and prompt.

A published number can be compared with a measured one only if both used the same protocol, so `audit` names them and
`published` matches by them.
"""

from __future__ import annotations

import re
from typing import Any

CLOSED_BOOK = ("nq_open", "triviaqa")
"""lm-eval's tasks that ask questions without a document."""

UNWINDOWED = ("swde", "fda", "squad_completion")
"""lm-eval's own recall tasks: whole documents."""

WINDOWS: dict[tuple[Any, Any], str] = {
    (1000, 50): "the paper's Table 1 (window of 950 tokens)",
    (2048, 50): "2,048 tokens (window of 1,998 tokens)",
    (2048, 48): "2,048 tokens as MoM ran it (window of 2,000 tokens)",
}
"""(context_length, answer_length) -> the protocol."""

RECALL = re.compile(r"^(jrt|based)_(2k_)?(swde|fda|squad|drop|triviaqa|nq_\d+)(_|$)")
"""Our recall tasks by name."""

TWO_K = range(2000, 2049)
"""Context lengths that papers call "inputs truncated to 2K tokens"."""


def length_protocol(context_length: int | None) -> str:
    """The protocol of one of our tasks, as far as its context length tells; `published/recall.csv` has the same names."""
    if context_length is None:
        return "whole documents"
    return "2K tokens" if context_length in TWO_K else f"{context_length} tokens"


def task_protocol(task: str, dataset: str, context_length: int | None) -> str:
    """`length_protocol` for our tasks, `unwindowed` for lm-eval's own tasks on whole documents, else `other`."""
    if RECALL.match(task):
        return length_protocol(context_length)
    return "unwindowed" if dataset in UNWINDOWED and context_length is None else "other"
