"""What the report's browser of documents shows: questions, gold answers, generations, scores and prompts.

A page has room for some of a large data set: as many documents of each task, from its start, as fit into BUDGET.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pandas as pd

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.notes import Notes
from jrt_eval.analysis.pairing import DOCUMENT, Arm, find_arms
from jrt_eval.analysis.schema import METRIC_PREFIX
from jrt_eval.analysis.tables import dataset_name

BUDGET = 24_000_000  # characters of prompts and generations; compressed, about a third of that in bytes
CHUNK = 100  # documents whose prompts are unpacked together

_TEXTS = ["filter", "row", "doc_hash", "doc_id", "doc_key", "question", "targets", "generation", "prompt"]


@dataclass
class Documents:
    """The browser's data.

    index: models, tasks, variants, chunk (size), documents `[task, number, key, question, [gold, ...]]` and answers
    `[document, model, variant, score, generation, prompt]`; the last four are indices or values, prompt an index into
    the document's prompts. prompts: those of each document. shown and total: predictions.
    """

    index: dict[str, Any]
    prompts: list[list[str]] = field(default_factory=list)
    shown: int = 0
    total: int = 0

    def chunks(self) -> list[list[list[str]]]:
        """The prompts of CHUNK documents each."""
        return [self.prompts[start : start + CHUNK] for start in range(0, len(self.prompts), CHUNK)]


def document_data(
    results: Results, metric: str, *, filter_name: str | None = None, budget: int | None = None
) -> Documents:
    """The documents of every model, data set and variant that has the metric, within the budget of characters."""
    arms = find_arms(results, metric, Notes(), filter_name=filter_name)
    models = sorted({arm.label for arm in arms})
    groups: dict[tuple[str, int | None], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.shown, arm.context_length), []).append(arm)
    variants = list(dict.fromkeys(["once", "twice", *sorted({a.variant for a in arms if a.variant})]))
    several = {shown for shown, _ in groups if sum(other == shown for other, _ in groups) > 1}
    names = [
        dataset_name(shown) + ((f" ({n} tokens)" if n is not None else " (whole)") if shown in several else "")
        for shown, n in groups
    ]
    index: dict[str, Any] = {
        "models": models, "tasks": names, "variants": variants, "chunk": CHUNK, "documents": [], "answers": [],
    }  # fmt: skip
    data = Documents(index, total=sum(arm.units[0].rows // len(arm.units[0].filters or "x") for arm in arms))
    for task, of_task in enumerate(groups.values()):
        _add_task(data, results, metric, task, of_task, (budget or BUDGET) // max(len(groups), 1))
    data.shown = len(index["answers"])
    return data


def _add_task(data: Documents, results: Results, metric: str, task: int, arms: Sequence[Arm], budget: int) -> None:
    """Add a task's first documents, once before twice before other variants."""
    order = {variant: place for place, variant in enumerate(data.index["variants"])}
    count = _documents_within(results, metric, arms, budget)
    frames = [(arm, _read(results, arm, metric, count)) for arm in arms]
    kind = _identity([frame for _, frame in frames])
    places: dict[Any, int] = {}
    rows: list[tuple[Any, ...]] = []
    for arm, frame in frames:
        model, variant = data.index["models"].index(arm.label), order.get(arm.variant or "", -1)
        identities = frame[kind].astype(object)
        repeated = frame.groupby(identities).cumcount() if len(frame) else pd.Series(dtype=int)
        columns = [frame[name].astype(object) for name in _TEXTS[1:]]
        scores = frame[METRIC_PREFIX + metric].astype(float)
        for identity, number, score, values in zip(
            identities, repeated, scores, zip(*columns, strict=True), strict=True
        ):
            rows.append(((identity, number), model, variant, score, *values))
    keys = dict.fromkeys(row[0] for row in rows)
    if kind != "doc_hash":
        keys = dict.fromkeys(sorted(keys))
    first = len(data.prompts)
    for key in list(keys)[:count]:
        places[key] = first + len(places)
        data.prompts.append([])
        data.index["documents"].append([task, 0, "", "", []])
    for key, model, variant, score, row, _, doc_id, doc_key, question, targets, generation, prompt in sorted(
        (row for row in rows if row[0] in places), key=lambda row: (places[row[0]], row[1], row[2])
    ):
        at = places[key]
        document = data.index["documents"][at]
        document[1] = int(doc_id if pd.isna(row) else row) if not (pd.isna(row) and pd.isna(doc_id)) else at - first
        document[2] = document[2] or _text(doc_key)
        document[3] = document[3] or _text(question)  # SQuAD's once prompt has no cue of its own
        document[4] = document[4] or ([str(t) for t in targets] if targets is not None else [])
        text = _text(prompt)
        if text not in data.prompts[at]:
            data.prompts[at].append(text)
        answer = [at, model, variant, round(score, 4), _text(generation), data.prompts[at].index(text)]
        data.index["answers"].append(answer)


def _read(results: Results, arm: Arm, metric: str, count: int) -> pd.DataFrame:
    unit = arm.units[0]
    frame = results.read(unit, [*_TEXTS, METRIC_PREFIX + metric], first=count * max(len(unit.filters), 1))
    frame = frame[(frame["filter"] == arm.filter) & frame[METRIC_PREFIX + metric].notna()]
    return frame.drop_duplicates(list(DOCUMENT), ignore_index=True)


def _documents_within(results: Results, metric: str, arms: Sequence[Arm], budget: int) -> int:
    """How many documents of a task fit, judged by its first few."""
    frames = [_read(results, arm, metric, 8) for arm in arms]
    prompts = {text for frame in frames for text in frame["prompt"].dropna()}
    looked_at = max((len(frame) for frame in frames), default=0)
    size = sum(map(len, prompts)) + sum(int(frame["generation"].fillna("").str.len().sum()) for frame in frames)
    return max(1, budget * looked_at // max(size, 1))


def _identity(frames: list[pd.DataFrame]) -> str:
    """The column that identifies documents in all arms, as in `pairing`."""
    frames = [frame for frame in frames if len(frame)]
    if all(frame["row"].notna().all() for frame in frames):
        return "row"
    if all(frame["doc_hash"].notna().all() for frame in frames):
        sets = [set(frame["doc_hash"]) for frame in frames]
        if len(sets) < 2 or any(a & b for a, b in pairwise(sets)):
            return "doc_hash"
    return "doc_id"


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and value != value) else str(value)
