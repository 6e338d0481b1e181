"""Set disjointness and MQAR as documents of lm-eval tasks. Tokens are written as words; `--metadata` sets the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jrt_eval.data import mqar as recall
from jrt_eval.data import set_disjointness as sets
from jrt_eval.data.rows import IGNORED_LABEL
from jrt_eval.errors import UserError, nearest

_SETS = {"first": 4, "second": 32, "documents": 200, "seed": 1, "vocabulary": 512}
_MQAR = {"length": 64, "pairs": 8, "documents": 200, "seed": 1, "vocabulary": 512}
# Keys that lm-eval and other tasks put into the metadata.
_FOREIGN = {
    "version",
    "pretrained",
    "tokenizer",
    "data_dir",
    "dataset",
    "context_length",
    "answer_length",
    "max_length",
}


def _settings(name: str, known: Mapping[str, int], metadata: Mapping[str, Any]) -> dict[str, int]:
    """`known` updated by the metadata: integers of at least 1 (seed: 0). A key that resembles a known one is refused."""
    chosen = dict(known)
    for key, value in metadata.items():
        if key not in known:
            if key not in _FOREIGN and (close := nearest(key, list(known))):
                raise UserError(f"task {name}: metadata has no key {key!r}{close}")
            continue
        try:
            chosen[key] = int(value)
        except (TypeError, ValueError):
            raise UserError(f"task {name}: metadata {key} must be an integer, got {value!r}") from None
        if chosen[key] < (0 if key == "seed" else 1):
            raise UserError(f"task {name}: metadata {key} must be at least {0 if key == 'seed' else 1}, got {value}")
    return chosen


def _words(tokens: Any) -> str:
    return " ".join(f"w{token}" for token in tokens)


def _split(rows: list[dict[str, str]]) -> dict[str, Any]:
    import datasets

    return {"validation": datasets.Dataset.from_list(rows)}


def set_disjointness(**metadata: Any) -> dict[str, Any]:
    """Rows with `prompt` and `answer`. Metadata: first and second (sizes of the sets in this order), documents, seed, vocabulary."""
    s = _settings("jrt_set_disjointness", _SETS, metadata)
    try:
        inputs, answers = sets.examples(s["first"], s["second"], s["documents"], s["seed"], s["vocabulary"])
    except ValueError as error:
        raise UserError(f"task jrt_set_disjointness: {error}; give a larger vocabulary") from None
    rows = []
    for row, answer in zip(inputs.tolist(), answers.tolist(), strict=True):
        a, b = row[1 : s["first"] + 1], row[s["first"] + 2 : -1]
        rows.append({"prompt": f"First: {_words(a)}\nSecond: {_words(b)}\nIn both:", "answer": f"w{answer}"})
    return _split(rows)


def mqar(**metadata: Any) -> dict[str, Any]:
    """Rows with `prompt` and `answer`: pairs, then queries with their values; the answer is the value of the last query."""
    s = _settings("jrt_mqar", _MQAR, metadata)
    try:
        inputs, labels = recall.examples(s["length"], s["pairs"], s["documents"], s["seed"], s["vocabulary"])
    except ValueError as error:
        raise UserError(f"task jrt_mqar: {error}") from None
    rows = []
    for row, targets in zip(inputs.tolist(), labels.tolist(), strict=True):
        pairs = [f"w{k} w{v}" for k, v in zip(row[0 : 2 * s["pairs"] : 2], row[1 : 2 * s["pairs"] : 2], strict=True)]
        asked = [(row[i], value) for i, value in enumerate(targets) if value != IGNORED_LABEL]
        before = [f"w{key} w{value}" for key, value in asked[:-1]]
        key, value = asked[-1]
        rows.append({"prompt": f"{', '.join([*pairs, *before])}, w{key}", "answer": f"w{value}"})
    return _split(rows)
