"""Paired comparisons: one way of reading against another, or model against model, on the same documents.

How the numbers are made is in `intervals`; what makes two predictions a pair is in `pairing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jrt_eval.analysis.intervals import Sums, estimate
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.metrics import is_higher_better, is_share
from jrt_eval.analysis.notes import Notes, listed
from jrt_eval.analysis.pairing import Arm, comparable, document_numbers, find_arms, pair_arms
from jrt_eval.analysis.select import paired_metric
from jrt_eval.errors import UserError, nearest

POOLED = "all tasks"
FEW = 10  # documents: below that no interval is reliable
CLUSTERS = ("doc_key", "question", "target", "doc_hash", "prompt_hash", "row", "doc_id")
"""Columns of predictions that can say which rows are about one document."""

_NAMES = ("model", "dataset", "stratum")


@dataclass
class Comparison:
    """A paired comparison.

    arms: what first and second are. table: a row per model (or pair of models) and task, and one per model over all
    tasks: `model, dataset, n, documents, first, second, gain, low, high, better, worse, p, p_adjusted, detectable`.
    gain: second - first, whichever direction is better. better, worse: rows that changed. p_adjusted: Holm's, over the
    single tasks of all models, and over the pooled rows. Its costs, nan where they are not known, are means per
    document: `first_tokens, second_tokens` of the prompts, `first_seconds, second_seconds` of the model's calls. pairs: a
    row per pair: `model, dataset, window, stratum, document, first, second, weight` and what is known of the document.
    window: the task's context length, -1 for whole documents. share: scores are between 0 and 1, to be shown in percent.
    """

    arms: tuple[str, str]
    metric: str
    table: pd.DataFrame
    pairs: pd.DataFrame
    warnings: list[str] = field(default_factory=list)
    higher_is_better: bool = True
    share: bool = True


def compare_variants(
    results: Results,
    *,
    metric: str | None = None,
    models: Iterable[str] | None = None,
    against: str = "once",
    variant: str = "twice",
    filter_name: str | None = None,
    cluster: str | None = None,
    by_size: bool = False,
    confidence: float = 0.95,
) -> Comparison:
    """`variant` against `against`, for every model and data set that has both. Raises UserError.

    cluster: a column of predictions; rows with one value are about one document (default: the names that the documents
    have). by_size: the pooled row weighs data sets by their documents.
    """
    metric = paired_metric(results, metric)
    notes = Notes()
    arms = find_arms(
        results, metric, notes, models=list(models) if models is not None else None, filter_name=filter_name
    )
    read = {arm.variant for arm in arms} - {None}
    if variant not in read:
        told = (
            "run the tasks jrt_<name> and jrt_<name>_twice"
            if variant == "twice"
            else f"there are {listed(sorted(map(str, read)))}"
        )
        raise UserError(f"nothing was read {variant} here: {told}")
    found = []
    for first in arms:
        for second in arms:
            same = (first.label, first.dataset, first.context_length) == (
                second.label,
                second.dataset,
                second.context_length,
            )
            if first.variant == against and second.variant == variant and same:
                found.append((first, second, first.label, first.shown, first.dataset))
    frames = _pairs(results, found, metric, notes, cluster)
    if not frames:
        have = sorted({f"{a.dataset} {a.variant}" for a in arms if a.variant is not None})
        raise UserError(
            f"no model has a data set both {against} and {variant} with one context length: there are {listed(have, 8)}"
        )
    return _compare((against, variant), metric, frames, results, notes, confidence, by_size)


def compare_models(
    results: Results,
    first: str,
    second: str | Sequence[str],
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    cluster: str | None = None,
    by_size: bool = False,
    confidence: float = 0.95,
) -> Comparison:
    """Models against a model on every task that both ran; `dataset` in the table is the task. Raises UserError.

    first: the baseline. second: a model, or several. A name is a model, or a model's label with its settings.
    """
    others = [second] if isinstance(second, str) else list(second)
    metric = paired_metric(results, metric)
    notes = Notes()
    arms = find_arms(results, metric, notes, filter_name=filter_name)
    by_name = {name: [a for a in arms if name in {a.label, a.units[0].model}] for name in (first, *others)}
    known = {str(m) for m in results.scores["model"].unique()} | {a.label for a in arms}
    for name in by_name:
        if name not in known:
            raise UserError(f"no model {name!r}{nearest(name, sorted(known))}: there are {', '.join(sorted(known))}")
    if first in others:
        raise UserError(f"{first!r} is compared with itself: name two models")
    found = []
    for name in others:
        for a in by_name[first]:
            for b in by_name[name]:
                if (a.task, a.context_length) == (b.task, b.context_length) and a.settings == b.settings:
                    task = a.task + a.shown.removeprefix(a.dataset)
                    found.append((a, b, b.label if len(others) > 1 else f"{b.label} - {a.label}", task, a.dataset))
    frames = _pairs(results, found, metric, notes, cluster)
    if not frames:
        raise UserError(f"{first} and {listed(others)} have no task with the same documents in common")
    return _compare(
        (first, others[0] if len(others) == 1 else "each model"), metric, frames, results, notes, confidence, by_size
    )


def gain_by(comparison: Comparison, column: str, bins: int = 5, *, confidence: float = 0.95) -> dict[str, pd.DataFrame]:
    """The gain in bins of a column of `Comparison.pairs`, per model: `bin, low_edge, high_edge, n, documents, first,
    second, gain, low, high, ...`.

    Bins hold about the same number of pairs each; equal values are never split. Pairs where the column is missing are
    left out, and so is a model that has none.
    """
    tables = {}
    for model, pairs in comparison.pairs.groupby("model", sort=True, observed=True):
        known = pairs[pairs[column].notna()]
        if known.empty:
            continue
        values = known[column]
        groups = pd.qcut(values, min(bins, values.nunique()), duplicates="drop") if values.nunique() > 1 else values
        rows = []
        for index, (_, part) in enumerate(known.groupby(groups, observed=True)):
            edges = {"low_edge": float(part[column].min()), "high_edge": float(part[column].max())}
            rows.append({"bin": index, **edges, **_of(comparison, [part], confidence)})
        tables[str(model)] = pd.DataFrame(rows)
    return tables


def _pairs(
    results: Results,
    found: list[tuple[Arm, Arm, str, str, str]],
    metric: str,
    notes: Notes,
    cluster: str | None,
) -> list[pd.DataFrame]:
    """The pairs of each model, from (first, second, model, shown, stratum)."""
    if cluster is not None and cluster not in CLUSTERS:
        raise UserError(f"--cluster {cluster}{nearest(cluster, list(CLUSTERS))}: it can be {', '.join(CLUSTERS)}")
    lengths: dict[str, set[int | None]] = {}
    for first, *_ in found:
        lengths.setdefault(first.dataset, set()).add(first.context_length)
    frames: dict[str, list[pd.DataFrame]] = {}
    done = []
    for model in dict.fromkeys(model for _, _, model, _, _ in found):
        for first, second, owner, shown, stratum in found:
            if owner != model:
                continue
            if not comparable(first, second):
                notes.add("not paired: run with other settings", f"{first.name} and {second.task}")
                continue
            pairs = pair_arms(results, first, second, metric, notes, cluster=cluster)
            if pairs.empty:
                continue
            length, window = first.context_length, ""
            if len(lengths[first.dataset]) > 1:
                window = " @whole" if length is None else f" @{length}"
            names = {"model": model, "dataset": shown + window, "stratum": stratum + window}
            spent = {side: _seconds(results, arm) for side, arm in (("first", first), ("second", second))}
            pairs = pairs.assign(**names, window=-1 if length is None else length)
            pairs = pairs.assign(**{f"{side}_seconds": seconds for side, seconds in spent.items()})
            frames.setdefault(model, []).append(pairs)
        if model in frames:
            of_model = pd.concat(frames.pop(model), ignore_index=True)
            of_model["document"] = document_numbers(of_model)
            done.append(of_model.drop(columns=["names", "key"]).astype(dict.fromkeys(_NAMES, "category")))
    return done


def _compare(
    arms: tuple[str, str],
    metric: str,
    frames: list[pd.DataFrame],
    results: Results,
    notes: Notes,
    confidence: float,
    by_size: bool,
) -> Comparison:
    pairs = pd.concat([frame.astype(dict.fromkeys(_NAMES, object)) for frame in frames], ignore_index=True)
    pairs = pairs.astype(dict.fromkeys(_NAMES, "category"))
    stated = results.scores.loc[results.scores["metric"] == metric, "higher_is_better"].dropna()
    better = is_higher_better(metric, bool(stated.iloc[0]) if len(stated) else None)
    if better is None:
        notes.add(f"whether a higher {metric} is better is not known; it is taken to be")
    share = is_share(metric, [*pairs["first"].unique(), *pairs["second"].unique()])
    comparison = Comparison(arms, metric, pd.DataFrame(), pairs, [], better is not False, share)
    comparison.table = _table(comparison, confidence, by_size)
    few = comparison.table[comparison.table["documents"] < FEW].drop_duplicates("dataset")
    if len(few):
        told = [f"{name} ({count})" for name, count in zip(few["dataset"], few["documents"], strict=True)]
        notes.add(f"fewer than {FEW} documents: no method knows how certain these are", *told)
    comparison.warnings = notes.lines()
    return comparison


def _table(comparison: Comparison, confidence: float, by_size: bool) -> pd.DataFrame:
    from statsmodels.stats.multitest import multipletests

    rows = []
    for model, of_model in comparison.pairs.groupby("model", sort=True, observed=True):
        tasks = [part for _, part in of_model.groupby(["dataset", "window"], sort=True, observed=True)]
        for part in tasks:
            summary = _of(comparison, [part], confidence)
            rows.append({"model": model, "dataset": str(part["dataset"].iloc[0]), **summary, **_costs([part])})
        if len(tasks) > 1:
            strata = [part for _, part in of_model.groupby("stratum", sort=True, observed=True)]
            summary = _of(comparison, strata, confidence, by_size)
            rows.append({"model": model, "dataset": POOLED, **summary, **_costs(strata, by_size)})
    table = pd.DataFrame(rows)
    table["p_adjusted"] = math.nan
    pooled = table["dataset"] == POOLED
    for rows_of in (pooled, ~pooled):
        if rows_of.any():
            table.loc[rows_of, "p_adjusted"] = multipletests(table.loc[rows_of, "p"], method="holm")[1]
    return table


def _costs(parts: list[pd.DataFrame], by_size: bool = False) -> dict[str, float]:
    """Prompt tokens and seconds per document of both arms, pooled as the scores are; nan where one is not known."""
    columns = {"first_tokens": "prompt_tokens", "second_tokens": "prompt_tokens_second"}
    columns |= {name: name for name in ("first_seconds", "second_seconds")}
    sizes = [len(part) if by_size else 1 for part in parts]
    means = {name: [float(part[column].mean(skipna=False)) for part in parts] for name, column in columns.items()}
    return {name: float(np.average(values, weights=sizes)) for name, values in means.items()}


def _seconds(results: Results, arm: Arm) -> float:
    """Seconds of the model's calls per document, a mean over the arm's runs; nan where they were not recorded."""
    scores, runs = results.scores, [unit.run_id for unit in arm.units]
    found = scores[scores["run_id"].isin(runs) & (scores["task"] == arm.task)].drop_duplicates("run_id")
    return float(found["document_seconds"].mean())


def _of(
    comparison: Comparison, parts: list[pd.DataFrame], confidence: float, by_size: bool = False
) -> dict[str, float]:
    higher = comparison.higher_is_better
    return summary(parts, share=comparison.share, higher_is_better=higher, confidence=confidence, by_size=by_size)


def summary(
    parts: list[pd.DataFrame],
    *,
    share: bool,
    higher_is_better: bool,
    confidence: float = 0.95,
    by_size: bool = False,
) -> dict[str, float]:
    """Sizes, means over the parts' means, the gain with its interval and p, and how many rows changed."""
    sums = []
    for part in parts:
        difference = (part["second"] - part["first"]) * part["weight"]
        grouped = pd.DataFrame({"d": difference, "c": part["weight"]}).groupby(part["document"]).sum()
        sums.append(Sums(grouped["d"].to_numpy(), grouped["c"].to_numpy()))
    found = estimate(sums, share=share, confidence=confidence, by_size=by_size)
    sizes = np.array([part["weight"].sum() for part in parts])
    weights = sizes / sizes.sum() if by_size else np.full(len(parts), 1 / len(parts))
    first, second = (
        float(sum(w * np.average(part[arm], weights=part["weight"]) for w, part in zip(weights, parts, strict=True)))
        for arm in ("first", "second")
    )
    change = pd.concat([part["second"] - part["first"] for part in parts])
    up, down = int((change > 0).sum()), int((change < 0).sum())
    return {
        "n": sum(len(part) for part in parts),
        "documents": sum(len(part.difference) for part in sums),
        "first": first,
        "second": second,
        "gain": found.gain,
        "low": found.low,
        "high": found.high,
        "better": up if higher_is_better else down,
        "worse": down if higher_is_better else up,
        "p": found.p,
        "detectable": found.detectable,
    }
