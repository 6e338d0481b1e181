"""Pairs of predictions: the same document in two arms, with both scores and what is known of the document.

A document is identified by the row of the data set that our tasks record (`jrt_row`; with length and depth where a row
has several windows), else by lm-eval's hash of it, else
by its position (`doc_id`), which an unsorted `--samples` makes wrong; a note says so. A document that a data set holds
several times is paired in order. Runs that differ in their seeds are averaged per document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jrt_eval.analysis.load import Results, Unit
from jrt_eval.analysis.metrics import choose_filter
from jrt_eval.analysis.notes import Notes, counted
from jrt_eval.analysis.schema import DEPTH, LENGTH, METRIC_PREFIX, WEIGHT_PREFIX
from jrt_eval.analysis.select import choose_runs, single_tasks, tell_datasets_apart
from jrt_eval.errors import UserError, nearest

KEPT = (
    "doc_tokens",
    "answer_token",
    "answer_depth",
    "answer_distance",
    "answer_distance_tokens",
    "prompt_chars",
    "prompt_tokens",
    LENGTH,
)
"""Columns of predictions that pairs keep, as floats: those of the first arm."""

_BOTH = ("prompt_tokens",)  # those that are kept of the second arm too, as `x_second`

# Settings that two arms must share; the others belong to the task or to the choice of documents.
_SHARED = (
    "num_fewshot",
    "context_length",
    "windows",
    "gen_kwargs",
    "system_instruction",
    "chat_template",
    "thinking",
    "fewshot_as_multiturn",
)
DOCUMENT = ("doc_id", "row", "doc_hash")
"""Columns of predictions that are equal in two rows of one sample file if a document was written twice."""

_IDENTITY = {"row": "row", "hash": "doc_hash", "position": "doc_id"}


@dataclass(frozen=True)
class Arm:
    """The runs of one model on one task with one set of settings; several if they differ in seeds.

    name: what the arm is called in notes.
    """

    name: str
    label: str
    task: str
    dataset: str
    shown: str
    variant: str | None
    context_length: int | None
    settings: tuple[Any, ...]
    units: tuple[Unit, ...]
    filter: str


def find_arms(
    results: Results, metric: str, notes: Notes, *, models: Sequence[str] | None = None, filter_name: str | None = None
) -> list[Arm]:
    """The arms that have the metric, in the order of label and task. Raises UserError for an unknown model or filter."""
    known = [str(m) for m in results.scores["model"].unique()]
    for model in models or ():
        if model not in known:
            raise UserError(f"no model {model!r}{nearest(model, known)}: there are {', '.join(known)}")
    column = METRIC_PREFIX + metric
    units = {(u.run_id, u.task): u for u in results.units if models is None or u.model in models}
    having = {key: unit for key, unit in units.items() if column in unit.numbers}
    lacking = sorted({unit.task for key, unit in units.items()} - {unit.task for unit in having.values()})
    if lacking:
        notes.add(f"without {metric}, so left out", *lacking)
    names = sorted({name for unit in having.values() for name in unit.filters})
    if filter_name is not None and filter_name not in names:
        raise UserError(f"no filter {filter_name!r}{nearest(filter_name, names)}: there are {', '.join(names)}")
    rows = single_tasks(results.scores).drop_duplicates(["run_id", "task"])
    rows = rows.astype(
        dict.fromkeys(["run_id", "model", "task", "dataset", "variant", "chat_template", "task_version"], object)
    )
    rows = rows[[key in having for key in zip(rows["run_id"], rows["task"], strict=True)]]
    if rows.empty:
        return []
    rows = choose_runs(tell_datasets_apart(rows), notes)
    _warn(rows, notes)
    filters = _filters(having, notes, filter_name)
    arms = []
    for _, part in rows.groupby(["label", "task", "context_length"], dropna=False):
        first = part.iloc[0]
        task, length = str(first["task"]), first["context_length"]
        if filters[task] is None:
            notes.add(f"without the filter {filter_name}, so left out", task)
            continue
        several = filter_name is None and len({f for u in having.values() if u.task == task for f in u.filters}) > 1
        arms.append(
            Arm(
                name=f"{first['label']}, {task}",
                label=str(first["label"]),
                task=task,
                dataset=first["dataset"],
                shown=first["dataset"] + (f" ({filters[task]})" if several else ""),
                variant=None if pd.isna(first["variant"]) else first["variant"],
                context_length=None if pd.isna(length) else int(length),
                settings=tuple(None if pd.isna(first[name]) else first[name] for name in _SHARED),
                units=tuple(having[run_id, task] for run_id in part["run_id"]),
                filter=str(filters[task]),
            )
        )
    return arms


def pair_arms(
    results: Results,
    first: Arm,
    second: Arm,
    metric: str,
    notes: Notes,
    *,
    cluster: str | None = None,
    second_results: Results | None = None,
    texts: tuple[str, ...] = (),
) -> pd.DataFrame:
    """The documents that both arms scored: `first`, `second`, `weight`, `key`, `names`, KEPT and `prompt_tokens_second`.

    names: lists of names of the document, for `document_numbers`. cluster: a column of predictions to take them from.
    second_results: where the second arm is, if not in `results`. texts: columns of predictions to keep of both arms, as
    `x` and `x_second`.
    """
    extra = ["document_names" if cluster is None else cluster, *KEPT, *texts]
    left = _read(results, first, metric, extra, notes)
    right = _read(second_results or results, second, metric, [*_BOTH, *texts], notes)
    kind = next((k for k in _IDENTITY if k in left.attrs["kinds"] and k in right.attrs["kinds"]), None)
    where = f"{first.label}, {first.shown}"
    if kind is None:
        notes.add("not paired: the two files identify their documents in different ways", where)
        return pd.DataFrame()
    both, alone = _match(left, right, kind, texts)
    if not len(both) and kind == "hash" and {"position"} <= left.attrs["kinds"] & right.attrs["kinds"]:
        kind = "position"
        both, alone = _match(left, right, kind, texts)
    if kind == "position" and len(both):
        notes.add("documents are paired by their position: that these are the same documents cannot be checked", where)
    for side, count in alone.items():
        arm = (first, second)[side]
        if count and len(both):
            notes.add(f"{counted(count, 'document')} of one side alone left out", arm.name)
    other = (both["target"] != both["target_second"]).fillna(False).astype(bool)
    if other.any():
        notes.add(
            f"{counted(int(other.sum()), 'document')} left out because the two sides have other gold answers", where
        )
        both = both[~other]
    if cluster is None:
        names = both["document_names"]
    else:
        names = pd.Series([None if v is None else [str(v)] for v in both[cluster].astype(object)], index=both.index)
    kept = ["first", "second", "weight", "key", *texts, *(f"{name}_second" for name in texts)]
    pairs = both[kept].assign(names=names)
    numbers = [*KEPT, *(f"{name}_second" for name in _BOTH)]
    return pairs.join(both[numbers].astype("float64")).reset_index(drop=True)


def comparable(first: Arm, second: Arm) -> bool:
    """Whether two arms were run with the same settings."""
    return first.settings == second.settings


def document_numbers(rows: pd.DataFrame) -> np.ndarray:
    """A number per document, equal for rows of a stratum that share a name, directly or by way of other rows.

    rows: columns stratum, key and names (lists, or missing: then the key is the document). Shape (rows,), int32.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups = rows.groupby(["stratum", "key"], sort=False).ngroup().to_numpy()
    names = pd.Series(
        [list(n) if isinstance(n, (list, np.ndarray)) else [] for n in rows["names"]], index=groups, dtype=object
    )
    links = names.explode().dropna()
    strata = rows["stratum"].astype(str).groupby(groups).first()
    codes = pd.factorize(strata[links.index].to_numpy(dtype=object) + "\0" + links.astype(str).to_numpy(dtype=object))[
        0
    ]
    count = groups.max(initial=-1) + 1
    size = count + codes.max(initial=-1) + 1
    graph = coo_matrix((np.ones(len(codes), bool), (links.index.to_numpy(), count + codes)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][groups])


def _read(results: Results, arm: Arm, metric: str, extra: list[str], notes: Notes) -> pd.DataFrame:
    """An arm's documents with their score (mean over its runs), weight and identities; attrs["kinds"] names these."""
    column, weight = METRIC_PREFIX + metric, WEIGHT_PREFIX + metric
    frames = []
    for unit in arm.units:
        wanted = ["filter", "doc_id", "row", LENGTH, DEPTH, "doc_hash", "target", column, *extra]
        frame = results.read(unit, list(dict.fromkeys([*wanted, *([weight] if weight in unit.numbers else [])])))
        frame = frame[frame["filter"] == arm.filter]
        doubled = frame.duplicated(list(DOCUMENT))
        if doubled.any():
            notes.add(f"{counted(int(doubled.sum()), 'document')} twice in one file: counted once", arm.name)
            frame = frame[~doubled]
        scores = frame[column].astype("float64")
        lost = scores.notna() & ~np.isfinite(scores.fillna(0.0)) | scores.isna()
        if lost.any():
            notes.add(f"{counted(int(lost.sum()), 'document')} without a finite {metric} left out", arm.name)
            frame = frame[~lost]
        frames.append(frame.sort_values("doc_id", kind="stable").reset_index(drop=True))
    kinds = {k for k, name in _IDENTITY.items() if all(frame[name].notna().all() for frame in frames)}
    base = frames[0].rename(columns={column: "score"})
    base["weight"] = base[weight].astype("float64") if weight in base else 1.0
    if len(frames) > 1:
        kind = next((k for k in _IDENTITY if k in kinds), "position")
        columns = [frame.set_index(_keys(frame, kind))[[column]] for frame in frames]
        every = pd.concat(columns, axis=1, join="inner")
        base = base.set_index(_keys(base, kind)).loc[every.index].reset_index(drop=True)
        base["score"] = every.mean(axis=1).to_numpy()
    base.attrs["kinds"] = kinds
    return base


def _keys(frame: pd.DataFrame, kind: str) -> pd.MultiIndex:
    """The document's identity, and which of several equal ones it is. A row may have windows of several kinds."""
    identity = frame[_IDENTITY[kind]].astype(object)
    if kind == "row" and identity.duplicated().any():
        windows = [frame[LENGTH].fillna(-1).astype(int), frame[DEPTH].fillna(-1).round(6)]
        identity = pd.Series(list(zip(identity, *windows, strict=True)), index=frame.index, dtype=object)
    return pd.MultiIndex.from_arrays([identity, frame.groupby(identity, dropna=False).cumcount()])


def _match(
    left: pd.DataFrame, right: pd.DataFrame, kind: str, texts: tuple[str, ...]
) -> tuple[pd.DataFrame, dict[int, int]]:
    keys, others = _keys(left, kind), _keys(right, kind)
    both = left.rename(columns={"score": "first"}).set_index(keys)
    both["key"] = [f"{identity}\0{number}" if number else identity for identity, number in keys]
    names = {"score": "second", **{name: f"{name}_second" for name in ("target", *_BOTH, *texts)}}
    joined = right[list(names)].rename(columns=names).set_index(others)
    both = both.join(joined, how="inner")
    alone = {0: len(left) - len(both), 1: len(right) - len(both)}
    return both.reset_index(drop=True), alone


def _filters(having: dict[tuple[str, str], Unit], notes: Notes, asked: str | None) -> dict[str, str | None]:
    """The filter of each task."""
    every: dict[str, set[str]] = {}
    for unit in having.values():
        every.setdefault(unit.task, set()).update(unit.filters)
    chosen = {task: choose_filter(names, asked) for task, names in every.items()}
    for task, names in every.items():
        if asked is None and len(names) > 1:
            told = ", ".join(sorted(names - {str(chosen[task])}))
            notes.add(f"several filters: {chosen[task]} is shown, --filter shows {told}", task)
    return chosen


def _warn(rows: pd.DataFrame, notes: Notes) -> None:
    for row in rows.to_dict("records"):
        if pd.notna(row["limit"]):
            notes.add(f"with --limit {row['limit']:g}, so not on all documents", row["label"])
        if pd.notna(row["n_truncated"]) and row["n_truncated"] > 0:
            lost = "prompts were longer than the model reads; jrt-eval audit tells what they lost"
            notes.add(f"{row['n_truncated']:,} {lost}", f"{row['label']}, {row['task']}")
    for (label, dataset), part in rows[rows["variant"].notna()].groupby(["label", "dataset"]):
        lengths = sorted(part["context_length"].fillna(-1).astype(int).unique())
        if len(lengths) > 1:
            told = ", ".join("whole" if length < 0 else str(length) for length in lengths)
            notes.add(f"several context lengths ({told}): only equal ones are compared", f"{label}, {dataset}")
