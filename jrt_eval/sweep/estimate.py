"""Prompts and tokens of a task before it runs: rows and mean lengths of the data sets, from their cards and the paper.

An estimate for planning, nothing else: the tokens are what a model reads (prompt) and writes (48 at most per prompt,
and the estimate takes all of them).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTION = 15  # tokens of a question or key
GENERATED = 48


@dataclass(frozen=True)
class DataSet:
    """Rows, mean tokens of a document (before any window), forward passes per row, tokens generated per row."""

    folder: str
    rows: int
    tokens: int
    passes: int = 1
    generated: int = GENERATED


RECALL = {
    "fda": DataSet("based-fda", 1102, 2000),
    "swde": DataSet("based-swde-v2", 1111, 1036),
    "squad": DataSet("based-squad", 2984, 152),
    "triviaqa": DataSet("based_triviaqa", 1698, 310),
    "drop": DataSet("based_drop", 2084, 237),
    "nq_512": DataSet("based_nq_512", 3157, 512),
    "nq_1024": DataSet("based_nq_1024", 3157, 1024),
    "nq_2048": DataSet("based_nq_2048", 3157, 2048),
}
# SuperGLUE's validation sets: mean tokens of one zero-shot prompt, and one pass per answer choice.
SUPERGLUE = {
    "boolq": DataSet("", 3270, 140, 2, 0),
    "cb": DataSet("", 56, 90, 3, 0),
    "copa": DataSet("", 100, 15, 2, 0),
    "multirc": DataSet("", 4848, 330, 2, 0),
    "record": DataSet("", 10000, 250, 10, 0),
    "sglue_rte": DataSet("", 277, 80, 2, 0),
    "wic": DataSet("", 638, 35, 2, 0),
    "wsc": DataSet("", 104, 45, 2, 0),
}


@dataclass(frozen=True)
class Load:
    """What a task costs; None where nothing is known of it."""

    prompts: int | None
    tokens: int | None


def load(task: str, metadata: dict[str, Any], num_fewshot: int | None, limit: float | None) -> Load:
    """The estimate for one task. A local `data_dir` is counted instead of the published rows."""
    name = task.removeprefix("jrt_").removeprefix("based_")
    twice = name.endswith("_twice")
    data = RECALL.get(name.removesuffix("_twice")) if task != name else SUPERGLUE.get(task)
    if data is None:
        return Load(None, None)
    rows, length = _local(data, metadata) or (data.rows, data.tokens)
    if limit is not None:
        rows = min(rows, int(limit) if limit >= 1 else max(1, round(rows * limit)))
    if task == name:  # SuperGLUE: every shot is a prompt more
        return Load(rows * data.passes, rows * data.passes * length * (1 + (num_fewshot or 0)))
    window = metadata.get("context_length", 1000)
    if isinstance(window, int):
        length = min(length, max(0, window - int(metadata.get("answer_length", 50) or 0)))
    prompt = (2 * length + 2 * QUESTION) if twice else (length + QUESTION)
    return Load(rows, rows * (prompt + data.generated))


def _local(data: DataSet, metadata: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and mean tokens (four characters to a token) of `<data_dir>/<data set>/validation.jsonl`."""
    root = metadata.get("data_dir") or os.environ.get("JRT_EVAL_DATA_DIR")
    if not root or not data.folder:
        return None
    path = Path(str(root)) / data.folder / "validation.jsonl"
    if not path.is_file():
        return None
    rows = characters = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                rows += 1
                characters += len(str(row.get("text") or row.get("context") or ""))
    return (rows, characters // max(rows, 1) // 4) if rows else None
