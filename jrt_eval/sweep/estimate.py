"""Estimates the prompts and tokens of a task before it runs, from rows and mean lengths of the published data sets.

For planning only. Tokens are those that a model reads (the prompt) and generates (counted as the maximum, 48 for each prompt).
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
class TaskSize:
    """What a task makes a model read and write; None if unknown."""

    prompts: int | None
    tokens: int | None
    answers: int | None  # prompts after which the model generates


@dataclass(frozen=True)
class Speed:
    """How fast a model is assumed to be. The defaults are for a 1.3B model on an A100."""

    prefill_tflops: float = (
        78.0  # a quarter of the A100's 312 TFLOP/s in bfloat16; 2 FLOPs for each parameter and token
    )
    step_ms: float = 25.0  # of a decode step of BATCH prompts


BATCH = 32


def gpu_hours(params: float, tokens: int, answers: int, speed: Speed) -> tuple[float, float]:
    """Hours of prefill and of decoding."""
    prefill = 2 * params * tokens / (speed.prefill_tflops * 1e12)
    decoding = answers / BATCH * GENERATED * speed.step_ms / 1e3
    return prefill / 3600, decoding / 3600


def task_size(task: str, metadata: dict[str, Any], num_fewshot: int | None, limit: float | None) -> TaskSize:
    """The estimate for one task. A local `data_dir` is counted instead of the published rows."""
    name = task.removeprefix("jrt_").removeprefix("based_")
    twice = name.endswith("_twice")
    data = RECALL.get(name.removesuffix("_twice")) if task != name else SUPERGLUE.get(task)
    if data is None:
        return TaskSize(None, None, None)
    rows, length = _local(data, metadata) or (data.rows, data.tokens)
    if limit is not None:
        rows = min(rows, int(limit) if limit >= 1 else max(1, round(rows * limit)))
    if task == name:  # SuperGLUE: each example in the prompt adds the length of a prompt
        return TaskSize(rows * data.passes, rows * data.passes * length * (1 + (num_fewshot or 0)), 0)
    window = metadata.get("context_length", 1000)
    if isinstance(window, int):
        answer = metadata.get("answer_length", 50)
        length = min(length, max(0, window - (answer if isinstance(answer, int) else 50)))
    prompt = (2 * length + 2 * QUESTION) if twice else (length + QUESTION)
    return TaskSize(rows, rows * (prompt + data.generated), rows)


def _local(data: DataSet, metadata: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and mean tokens (four characters each) of `<data_dir>/<data set>/validation.jsonl`; None if it cannot be read."""
    root = metadata.get("data_dir") or os.environ.get("JRT_EVAL_DATA_DIR")
    path = Path(str(root), data.folder, "validation.jsonl")
    if not root or not data.folder or not os.path.isfile(path):
        return None
    rows = characters = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in filter(str.strip, file):
                row = json.loads(line)
                rows += 1
                characters += len(str(row.get("text") or row.get("context") or ""))
    except (OSError, ValueError, AttributeError):  # the task itself reports what is wrong with it
        return None
    return (rows, characters // rows // 4) if rows else None
