"""Paired comparisons: once against twice, or model against model, on the same documents.

Every number comes from pairs: the same row of the same data set, scored in both arms. Rows about one document (FDA
asks several keys of each, SQuAD several questions) are not independent, so the bootstrap resamples documents, not
rows. Rows are about one document if they share one of its names, directly or by way of other rows.

    gain        mean of (second - first) over the rows
    interval    95%, `scipy.stats.bootstrap` (percentile) over documents; pooled: over documents within each task
    p           McNemar's test on fixed and broken rows (`statsmodels`), exact up to 1,000 of them, else with
                continuity correction; pooled: on the sums over tasks. Only for metrics of 0 and 1
    pooled      the mean over data sets, each counting the same, as the paper's average does; a data set is a stratum,
                and a document takes along all that was asked of it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.schema import METRIC_PREFIX
from jrt_eval.errors import UserError, nearest

PREFERRED = ("contains", "exact_match", "acc", "f1")
POOLED = "all tasks"
SEED = 0
FEW = 20  # documents: a bootstrap of fewer knows too little of their spread

# What pairs know of their document, beside the scores.
_DOCUMENT = [
    "document_names",
    "target",
    "doc_tokens",
    "answer_token",
    "answer_depth",
    "answer_distance",
    "answer_distance_tokens",
    "prompt_chars",
]


@dataclass
class Comparison:
    """A paired comparison.

    table: a row per model (or pair) and task, and one per model over all tasks: `model, dataset, n, documents, first,
    second, gain, low, high, fixed, broken, p`. pairs: a row per pair, with columns first and second (scores),
    row_first and row_second (labels of `Results.predictions`) and what is known of the document. arms: what first and
    second are.
    """

    arms: tuple[str, str]
    metric: str
    table: pd.DataFrame
    pairs: pd.DataFrame
    warnings: list[str] = field(default_factory=list)


def pick_metric(results: Results, metric: str | None = None) -> str:
    """The metric to compare by: as asked, else contains, exact_match, acc, f1, else the only one. Raises UserError."""
    available = [c.removeprefix(METRIC_PREFIX) for c in results.predictions.columns if c.startswith(METRIC_PREFIX)]
    if results.predictions.empty or not available:
        raise UserError(
            "no predictions: run lm_eval with --log_samples, a paired comparison needs each document's score"
        )
    if metric is not None:
        if metric not in available:
            raise UserError(
                f"no metric {metric!r}{nearest(metric, available)}: there are {', '.join(sorted(available))}"
            )
        return metric
    for name in PREFERRED:
        if name in available:
            return name
    if len(available) == 1:
        return available[0]
    raise UserError(f"several metrics and none that is known: choose one with --metric: {', '.join(sorted(available))}")


def compare_variants(
    results: Results, *, metric: str | None = None, models: Iterable[str] | None = None, confidence: float = 0.95
) -> Comparison:
    """Once against twice, for every model and data set that has both. Raises UserError."""
    metric = pick_metric(results, metric)
    rows, warnings = _rows(results, metric, models)
    rows = rows.assign(stratum=rows["dataset"])
    rows = rows[rows["variant"].isin(["once", "twice"])]
    if rows.empty:
        raise UserError("nothing was read twice here: run the tasks jrt_<name> and jrt_<name>_twice")
    keys = ["model", "dataset", "context_length", "num_fewshot"]
    pairs = _pair(rows[rows["variant"] == "once"], rows[rows["variant"] == "twice"], keys, ("once", "twice"), warnings)
    if pairs.empty:
        have = rows.groupby(["dataset", "variant"], observed=True).size().reset_index()
        told = ", ".join(f"{d} {v}" for d, v in zip(have["dataset"], have["variant"], strict=True))
        raise UserError(f"no model has a data set both once and twice with one context length: there are {told}")
    table = _table(pairs, metric, confidence)
    return Comparison(("once", "twice"), metric, table, pairs, warnings + _few(table))


def compare_models(
    results: Results, first: str, second: str, *, metric: str | None = None, confidence: float = 0.95
) -> Comparison:
    """Model against model on every task that both ran; `dataset` in the table is the task. Raises UserError."""
    known = [str(m) for m in results.scores["model"].cat.categories]
    for model in (first, second):
        if model not in known:
            raise UserError(f"no model {model!r}{nearest(model, known)}: there are {', '.join(known)}")
    if first == second:
        raise UserError(f"{first!r} is compared with itself: name two models")
    metric = pick_metric(results, metric)
    rows, warnings = _rows(results, metric, [first, second])
    base = rows["dataset"]
    rows = rows.assign(dataset=rows["task"], stratum=base)  # once and twice of a data set are about the same documents
    keys = ["dataset", "context_length", "num_fewshot"]
    pairs = _pair(rows[rows["model"] == first], rows[rows["model"] == second], keys, (first, second), warnings)
    if pairs.empty:
        raise UserError(f"{first} and {second} have no task with the same documents in common")
    pairs = pairs.assign(model=f"{second} - {first}")
    table = _table(pairs, metric, confidence)
    return Comparison((first, second), metric, table, pairs, warnings + _few(table))


def gain_by(pairs: pd.DataFrame, column: str, bins: int = 5, *, confidence: float = 0.95) -> pd.DataFrame:
    """The gain in bins of a column of `Comparison.pairs`: `bin, low_edge, high_edge, n, first, second, gain, low,
    high`.

    Bins hold about the same number of pairs each; equal values are never split. Pairs where the column is missing are
    left out. Empty where it is missing everywhere.
    """
    known = pairs[pairs[column].notna()]
    if known.empty:
        return pd.DataFrame(columns=["bin", "low_edge", "high_edge", "n", "first", "second", "gain", "low", "high"])
    values = known[column].astype(float)
    groups = pd.qcut(values, min(bins, values.nunique()), duplicates="drop") if values.nunique() > 1 else values
    rows = []
    for index, (_, part) in enumerate(known.groupby(groups, observed=True)):
        edges = (float(part[column].min()), float(part[column].max()))
        rows.append({"bin": index, "low_edge": edges[0], "high_edge": edges[1], **_summary([part], confidence)})
    return pd.DataFrame(rows).drop(columns=["documents"])


def gain_by_model(pairs: pd.DataFrame, column: str, bins: int = 5) -> dict[str, pd.DataFrame]:
    """`gain_by` of each model's pairs."""
    return {str(model): gain_by(part, column, bins) for model, part in pairs.groupby("model", sort=True)}


def _rows(results: Results, metric: str, models: Iterable[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """Predictions with the metric, one run per model, task and window, and the warnings that choosing them gave."""
    warnings: list[str] = []
    frame = results.predictions
    if models is not None:
        known = [str(m) for m in results.scores["model"].cat.categories]
        for model in (models := list(models)):
            if model not in known:
                raise UserError(f"no model {model!r}{nearest(model, known)}: there are {', '.join(known)}")
        frame = frame[frame["model"].isin(models)]
    frame = frame[frame[METRIC_PREFIX + metric].notna()]
    keep = ["run_id", "task", "num_fewshot", "limit", "time", "n_truncated"]
    runs = results.scores[keep].drop_duplicates(["run_id", "task"])
    # joined as plain strings: the categories of two frames may differ
    runs = runs.astype({"run_id": object, "task": object})
    wanted = ["run_id", "model", "task", "dataset", "variant", "context_length", "filter", "row", "doc_id", *_DOCUMENT]
    wanted.append(METRIC_PREFIX + metric)
    rows = frame[wanted].rename(columns={METRIC_PREFIX + metric: "score"})
    text = ["run_id", "model", "task", "dataset", "variant", "filter"]
    rows = rows.astype(dict.fromkeys(text, object)).assign(label=rows.index)
    rows = rows.merge(runs, on=["run_id", "task"], how="left", validate="many_to_one")
    rows["context_length"] = rows["context_length"].astype("Int64").fillna(-1)
    rows["num_fewshot"] = rows["num_fewshot"].astype("Int64").fillna(-1)
    several = rows.groupby(["run_id", "task"])["filter"].nunique()
    for group, count in several[several > 1].items():
        task = str(group[1])  # type: ignore[index]
        first = sorted(rows.loc[rows["task"] == task, "filter"].unique())[0]
        warnings.append(f"{task} has {count} filters: compared by {first!r}")
        rows = rows[(rows["task"] != task) | (rows["filter"] == first)]
    rows = _one_run(rows, warnings)
    limited = rows[rows["limit"].notna()].drop_duplicates(["model", "task"])
    for model, task, limit in zip(limited["model"], limited["task"], limited["limit"], strict=True):
        warnings.append(f"{model}, {task}: run with --limit {limit:g}, so not on all documents")
    cut = rows[rows["n_truncated"].fillna(0) > 0].drop_duplicates(["model", "task"])
    for model, task, count in zip(cut["model"], cut["task"], cut["n_truncated"], strict=True):
        lost = ": they lose their head, in a twice prompt the question"
        warnings.append(f"{model}, {task}: {count} prompts were longer than the model reads{lost}")
    for (name, dataset), part in rows[rows["variant"].notna()].groupby(["model", "dataset"]):
        lengths = sorted(part["context_length"].unique())
        if len(lengths) > 1:
            told = ", ".join("whole" if length < 0 else str(length) for length in lengths)
            warnings.append(f"{name}, {dataset}: several context lengths ({told}); only equal ones are compared")
    return rows, warnings


def _one_run(rows: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """Of several runs of one thing, the one without a limit, then the newest."""
    thing = ["model", "task", "context_length", "num_fewshot"]
    runs = rows.drop_duplicates([*thing, "run_id"]).copy()
    if not runs.duplicated(thing).any():
        return rows
    runs["full"] = runs["limit"].isna()
    best = runs.sort_values(["full", "time"]).drop_duplicates(thing, keep="last")
    for row in runs[runs.duplicated(thing, keep=False)].drop_duplicates(thing).itertuples():
        warnings.append(f"{row.model}, {row.task}: several runs; the newest without a limit is compared")
    return rows.merge(best[["run_id", "task"]], on=["run_id", "task"])


def _pair(
    first: pd.DataFrame, second: pd.DataFrame, keys: list[str], arms: tuple[str, str], warnings: list[str]
) -> pd.DataFrame:
    names = {"score": "second", "label": "row_second", "target": "target_second"}
    right = second[[*keys, "row", "score", "label", "target"]].rename(columns=names)
    left = first[[*keys, "model", "stratum", "row", "score", "label", *_DOCUMENT]].rename(
        columns={"score": "first", "label": "row_first"}
    )
    left = left.loc[:, ~left.columns.duplicated()]
    both = left.merge(right, on=[*keys, "row"], how="outer", indicator=True, validate="one_to_one")
    for group, part in both.groupby(keys, dropna=False):
        label = ", ".join(str(value) for value, key in zip(group, keys, strict=True) if key in {"model", "dataset"})
        alone = part["_merge"].value_counts()
        if alone["both"] == 0:
            if alone["left_only"] and (second[keys[:-2]] == list(group[:-2])).all(axis=1).any():
                warnings.append(f"{label}: {arms[0]} and {arms[1]} were run with other windows or shots; not paired")
            continue
        for side, arm in (("left_only", arms[0]), ("right_only", arms[1])):
            if alone[side]:
                warnings.append(
                    f"{label}: n differs: {alone[side]} documents of {arm} alone are left out, {alone['both']} paired"
                )
    both = both[both["_merge"] == "both"].drop(columns="_merge")
    other = (both["target"] != both["target_second"]).fillna(False).astype(bool)
    for group, part in both[other].groupby(keys, dropna=False):
        label = ", ".join(str(value) for value, key in zip(group, keys, strict=True) if key in {"model", "dataset"})
        warnings.append(f"{label}: {len(part)} documents differ between {arms[0]} and {arms[1]} and are left out")
    both = both[~other].drop(columns="target_second").reset_index(drop=True)
    lengths = both["context_length"].astype(str)
    both["stratum"] = both["stratum"].where(
        both.groupby("dataset")["context_length"].transform("nunique") < 2, both["stratum"] + " @" + lengths
    )
    both["document"] = document_numbers(both)
    return both.astype({"row_first": "int64", "row_second": "int64", "first": "float64", "second": "float64"})


def document_numbers(rows: pd.DataFrame) -> np.ndarray:
    """A number per document, equal for rows of a stratum that are about one document.

    rows: columns stratum, row and document_names (lists of names, or missing: then the row is its own document).
    Shape (rows,), int32.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups = rows.groupby(["stratum", "row"], sort=False).ngroup().to_numpy()
    names = pd.Series(
        [list(n) if isinstance(n, (list, np.ndarray)) else [] for n in rows["document_names"]],
        index=groups,
        dtype=object,
    )
    links = names.explode().dropna()
    strata = rows["stratum"].astype(str).groupby(groups).first()
    codes = pd.factorize(strata[links.index].to_numpy() + "\0" + links.astype(str).to_numpy())[0]
    count = groups.max(initial=-1) + 1
    size = count + codes.max(initial=-1) + 1
    graph = coo_matrix((np.ones(len(codes), bool), (links.index.to_numpy(), count + codes)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][groups])


def _table(pairs: pd.DataFrame, metric: str, confidence: float) -> pd.DataFrame:
    rows = []
    for model, of_model in pairs.groupby("model", sort=True):
        tasks = [part for _, part in of_model.groupby(["dataset", "context_length", "num_fewshot"], sort=True)]
        several = of_model.groupby("dataset")["context_length"].nunique().max() > 1
        for part in tasks:
            length = int(part["context_length"].iloc[0])
            name = str(part["dataset"].iloc[0])
            if several:
                name += f" @{length}" if length >= 0 else " @whole"
            rows.append({"model": model, "dataset": name, **_summary([part], confidence), **_mcnemar(part)})
        if len(tasks) > 1:
            strata = [part for _, part in of_model.groupby("stratum", sort=True)]
            pooled = {**_summary(strata, confidence), **_mcnemar(of_model)}
            rows.append({"model": model, "dataset": POOLED, **pooled})
    return pd.DataFrame(rows)


def _few(table: pd.DataFrame) -> list[str]:
    """A warning that names the tasks with few documents, if there are any."""
    few = table[table["documents"] < FEW].drop_duplicates("dataset")
    told = ", ".join(f"{name} ({count})" for name, count in zip(few["dataset"], few["documents"], strict=True))
    return [f"intervals from fewer than {FEW} documents are too narrow: {told}"] if told else []


def _summary(parts: list[pd.DataFrame], confidence: float) -> dict[str, float]:
    """Sizes, means over the parts' means, and the gain's interval from documents resampled within each part."""
    from scipy.stats import bootstrap

    sums, counts = [], []
    for part in parts:
        documents = (part["second"] - part["first"]).groupby(part["document"]).agg(["sum", "count"])
        sums.append(documents["sum"].to_numpy())
        counts.append(documents["count"].to_numpy())
    first = float(np.mean([part["first"].mean() for part in parts]))
    second = float(np.mean([part["second"].mean() for part in parts]))
    result = {
        "n": sum(len(part) for part in parts),
        "documents": sum(len(s) for s in sums),
        "first": first,
        "second": second,
        "gain": second - first,
        "low": float("nan"),
        "high": float("nan"),
    }
    if all(len(s) > 1 for s in sums):
        # A sample is the documents' indices: one draw of them takes sums and row counts along.
        def gain(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
            ratios = [s[d].sum(axis=axis) / c[d].sum(axis=axis) for s, c, d in zip(sums, counts, drawn, strict=True)]
            return np.asarray(np.mean(ratios, axis=0))

        largest = max(len(s) for s in sums)
        interval = bootstrap(
            [np.arange(len(s)) for s in sums],
            gain,
            n_resamples=9999 if largest <= 20_000 else 999,
            batch=max(1, 4_000_000 // largest),
            vectorized=True,
            confidence_level=confidence,
            method="percentile",
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
        result["low"], result["high"] = float(interval.low), float(interval.high)
    return result


def _mcnemar(part: pd.DataFrame) -> dict[str, float]:
    """Rows that the second arm fixed and broke, and McNemar's p; missing for a metric that is not 0 or 1."""
    from statsmodels.stats.contingency_tables import mcnemar

    first, second = part["first"], part["second"]
    if not (first.isin([0, 1]).all() and second.isin([0, 1]).all()):
        return {"fixed": int((second > first).sum()), "broken": int((second < first).sum()), "p": float("nan")}
    counts = pd.crosstab(first, second).reindex(index=[0, 1], columns=[0, 1], fill_value=0).to_numpy()
    fixed, broken = int(counts[0, 1]), int(counts[1, 0])
    p = float(mcnemar(counts, exact=fixed + broken <= 1000).pvalue) if fixed + broken else 1.0
    return {"fixed": fixed, "broken": broken, "p": p}
