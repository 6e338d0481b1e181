"""The tables: scores of any results, the paper's forms, and comparisons.

    scores_table   every task and group with standard errors
    prompt_table   Table 1's form: models x data sets, read once and twice, average and gain
    length_table   Table 2's form: models x (data set, context length)
    gain_table     a paired comparison: gain, interval and p per task
    cost_table     its costs: prompt tokens and seconds per document
    overview_table a row per model: pooled scores, size, and how it was run

Shares are in percent; other metrics are as they are. An average is over all data sets of a table, and missing for a model
that lacks one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from jrt_eval.analysis.comparison import Comparison
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.metrics import PREFERRED, is_higher_better, is_share
from jrt_eval.analysis.notes import Notes, listed
from jrt_eval.analysis.protocols import task_protocol
from jrt_eval.analysis.published import JRT, published_for
from jrt_eval.analysis.runs import VARIANTS
from jrt_eval.analysis.select import choose_runs, chosen_scores, score_metric, single_tasks
from jrt_eval.analysis.table import Name, Table, missing, with_columns
from jrt_eval.errors import UserError, nearest

PAPER = "paper"
OURS = "measured"
_ORDER = [
    "fda",
    "swde",
    "nq_512",
    "nq_1024",
    "nq_2048",
    "squad",
    "triviaqa",
    "drop",
]  # the order of the paper's columns
_NAMES = {"fda": "FDA", "swde": "SWDE", "squad": "SQuAD", "triviaqa": "TriviaQA", "drop": "DROP", "nq": "NQ"}
_FEW_METRICS = 4  # as many metrics are all shown


class Unit:
    """How a metric's values are shown: in percent, or as they are."""

    def __init__(self, metric: str, values: Iterable[float]) -> None:
        self.share = is_share(metric, values)
        self.title = f"{metric}, percent" if self.share else metric
        self.decimals = 1 if self.share else 3
        self.points = "points" if self.share else metric

    def of(self, value: Any) -> float:
        """The number to show: rounded so that 58.75 does not become 58.7 in one place and 58.8 in another."""
        if missing(value):
            return math.nan
        return round(100 * float(value), 9) if self.share else float(value)


def scores_table(results: Results, *, metrics: Sequence[str] | None = None, filter_name: str | None = None) -> Table:
    """Every task and group of any results: value and standard error, documents, and the settings that differ.

    metrics: which (default: all if they are few, else the known ones, and the first of a task that has none of these;
    `all`: all). Raises UserError.
    """
    notes = Notes()
    scores = results.scores.astype(dict.fromkeys(("run_id", "model", "task", "metric", "filter", "variant"), object))
    wanted = _wanted_metrics(scores, metrics)
    scores = scores[scores["metric"].isin(wanted)]
    if filter_name is not None:
        known = sorted(scores["filter"].unique())
        if filter_name not in known:
            raise UserError(f"no filter {filter_name!r}{nearest(filter_name, known)}: there are {', '.join(known)}")
        scores = scores[scores["filter"] == filter_name]
    plain = dict.fromkeys(("chat_template", "task_version", "dataset"), object)
    runs = choose_runs(scores.drop_duplicates(["run_id", "task"]).astype(plain), notes, prefer_full=False)
    scores = scores.merge(runs[["run_id", "task", "label"]], on=["run_id", "task"])
    keys = ["task", "group", "label", "context_length"]
    several = scores.groupby(["task", "label"])["context_length"].nunique(dropna=False).max() > 1
    columns: list[Name] = [(c, c) for c in ("task", "model", *(["context"] if several else []), "n")]
    cells = [(m, f) for m in wanted for f in sorted(scores.loc[scores["metric"] == m, "filter"].unique())]
    units = {m: Unit(m, scores.loc[scores["metric"] == m, "value"]) for m in wanted}
    named = [(f"{m} (%)" if units[m].share else m, "" if f == "none" else f) for m, f in cells]
    records = []
    for _, part in scores.groupby(keys, dropna=False):
        task, group, label, length = (part.iloc[0][key] for key in keys)
        record: list[Any] = [f"{task} (group)" if bool(group) else task, label]
        record += [("whole" if pd.isna(length) else str(length))] if several else []
        record.append(None if part["n"].isna().all() else int(part["n"].max()))
        for metric, name in cells:
            found = part[(part["metric"] == metric) & (part["filter"] == name)]
            record.append(_measure(found, units[metric], notes, label))
        records.append(record)
    limited = runs[runs["limit"].notna()]
    for label, limit in zip(limited["label"], limited["limit"], strict=True):
        notes.add(f"with --limit {limit:g}, so not on all documents", label)
    table = with_columns(records, [*columns, *named])
    formats = dict.fromkeys(named, "measure")
    places = {name: units[metric].decimals for name, (metric, _) in zip(named, cells, strict=True)}
    title = "scores ± standard error"
    return Table(title, table, len(columns) - 1, [], notes.lines(), 1, formats, slug="scores", places=places)


def _wanted_metrics(scores: pd.DataFrame, asked: Sequence[str] | None) -> list[str]:
    available = list(dict.fromkeys(scores["metric"]))
    if asked and list(asked) != ["all"]:
        for name in asked:
            if name not in available:
                raise UserError(
                    f"no metric {name!r}{nearest(name, available)}: there are {', '.join(sorted(available))}"
                )
        return list(dict.fromkeys(asked))
    order = [m for m in PREFERRED if m in available] + [m for m in available if m not in PREFERRED]
    if asked or len(available) <= _FEW_METRICS:
        return order
    known = {m for m in order if m in PREFERRED}
    for _, part in scores.groupby("task"):
        if not known & set(part["metric"]):
            known.add(part["metric"].iloc[0])
    return [m for m in order if m in known]


def _measure(rows: pd.DataFrame, unit: Unit, notes: Notes, label: str) -> tuple[float, float] | None:
    if rows.empty:
        return None
    if len(rows) > 1:
        notes.add("mean ± standard deviation over runs with different seeds", label)
        return unit.of(rows["value"].mean()), unit.of(rows["value"].std())
    return unit.of(rows["value"].iloc[0]), unit.of(rows["stderr"].iloc[0])


def prompt_table(
    results: Results, *, metric: str | None = None, published: bool = False, filter_name: str | None = None
) -> Table:
    """Table 1's form. published: rows that papers have of the user's models and protocols follow. Raises UserError."""
    notes = Notes()
    chosen, scores, unit = _variant_scores(results, metric, filter_name, notes)
    several = scores.groupby(["label", "shown", "variant"])["context_length"].nunique(dropna=False).max() > 1
    if several:
        lengths = ["" if pd.isna(v) else f" @{v}" for v in scores["context_length"]]
        scores = scores.assign(label=scores["label"] + pd.Series(lengths, index=scores.index, dtype=object))
    wide = scores.pivot(index="label", columns=["shown", "variant"], values="value")
    models = dict(zip(scores["label"], scores["model"], strict=True))
    rows = [(label, OURS, _parameters(results, models[label]), wide.loc[label]) for label in wide.index]
    if published:
        rows += _paper_rows(scores, chosen, ["dataset", "variant"], notes)
        rows.sort(key=lambda row: row[0])
    datasets = _ordered(scores["shown"].unique())
    variants = [v for v in VARIANTS if v in set(scores["variant"])]
    gain = {"once", "twice"} <= set(variants)
    sized = any(size for _, _, size, _ in rows)
    columns: list[Name] = [("model", "model"), *([("source", "source")] if published else [])]
    columns += [("size", "size")] if sized else []
    labels = len(columns)
    columns += [(dataset_name(d), v) for d in datasets for v in variants]
    averages = [("average", v) for v in variants] if len(datasets) > 1 else []
    columns += averages
    name = ("gain", "gain") if unit.share else ("change", "change")
    columns += [name] if gain else []
    records = []
    for label, source, size, values in rows:
        numbers = [unit.of(values.get((d, v))) for d in datasets for v in variants]
        means = {v: round(_mean(numbers[i :: len(variants)]), 9) for i, v in enumerate(variants)}
        record = [label, *([source] if published else []), *([size] if sized else []), *numbers]
        record += list(means.values()) if averages else []
        record += [means["twice"] - means["once"]] if gain else []
        records.append(record)
    best = columns[labels : len(columns) - gain]
    formats = {name: "signed"} if gain else {}
    lower = _lower(scores, chosen)
    title = f"{unit.title}: read {' and '.join(variants)}"
    return Table(
        title, with_columns(records, columns), labels, best, notes.lines(), unit.decimals, formats, lower, "prompt"
    )


def length_table(
    results: Results, *, metric: str | None = None, published: bool = False, filter_name: str | None = None
) -> Table:
    """Table 2's form: data set x context length; a row per model and variant. published: as in `prompt_table`.

    Raises UserError.
    """
    notes = Notes()
    chosen, scores, unit = _variant_scores(results, metric, filter_name, notes)
    several = scores["windows"].notna() & scores["context_length"].isna()
    if several.any():
        notes.add("windows of several lengths, so left out; `--table grid` shows them", *scores.loc[several, "task"])
        scores = scores[~several]
    if scores.empty:
        raise UserError("every task here has windows of several lengths: `--table grid` shows them")
    scores = scores.assign(context_length=scores["context_length"].astype("Int64").fillna(-1))
    keys = ["shown", "context_length"]
    wide = scores.pivot(index=["label", "variant"], columns=keys, values="value")
    rows = [(str(m), str(v), OURS, wide.loc[(m, v)]) for m, v in wide.index]
    if published:
        for variant, part in scores.groupby("variant"):
            found = _paper_rows(part, chosen, ["dataset", "context_length"], notes)
            rows += [(model, str(variant), source, values) for model, source, _, values in found]
    rows.sort(key=lambda row: (row[0], row[1], row[2] != OURS))
    places = [(str(name[0]), int(name[1])) for name in wide.columns]
    order = {d: i for i, d in enumerate(_ordered(d for d, _ in places))}
    cells = sorted(places, key=lambda c: (order[c[0]], c[1] < 0, c[1]))
    columns: list[Name] = [("model", "model"), ("read", "read"), *([("source", "source")] if published else [])]
    labels = len(columns)
    columns += [(dataset_name(d), "whole" if n < 0 else str(n)) for d, n in cells] + [("average", "average")]
    records = []
    for label, variant, source, values in rows:
        numbers = [unit.of(values.get(cell)) for cell in cells]
        records.append([label, variant, *([source] if published else []), *numbers, _mean(numbers)])
    title = f"{unit.title}: by context length (tokens)"
    lower = _lower(scores, chosen)
    frame = with_columns(records, columns)
    return Table(title, frame, labels, columns[labels:], notes.lines(), unit.decimals, {}, lower, "length")


def gain_table(comparison: Comparison) -> Table:
    """A comparison as a table: the gain with its 95% interval, rows that changed, p, and the smallest gain to be found."""
    first, second = comparison.arms
    unit = comparison_unit(comparison)
    scores = ("first", "second") if first not in VARIANTS else (first, second)
    gain = "gain" if comparison.higher_is_better else "change"
    binary = comparison.share and set(comparison.pairs["first"].unique()) <= {0.0, 1.0}
    changed = ("fixed", "broken") if binary else ("better", "worse")
    names = ["model", "task", "n", "documents", *scores, gain, "95% interval", *changed, "p", "Holm p", "detectable"]
    records = [
        [
            str(row["model"]),
            dataset_name(str(row["dataset"])),
            int(row["n"]),
            int(row["documents"]),
            unit.of(row["first"]),
            unit.of(row["second"]),
            unit.of(row["gain"]),
            (unit.of(row["low"]), unit.of(row["high"])),
            int(row["better"]),
            int(row["worse"]),
            float(row["p"]),
            float(row["p_adjusted"]),
            unit.of(row["detectable"]),
        ]
        for row in comparison.table.to_dict("records")
    ]
    title = f"{unit.title}: {second} against {first}, paired by document"
    title += "" if comparison.higher_is_better else "; lower is better"
    kinds = {gain: "signed", "95% interval": "interval", "p": "p", "Holm p": "p"}
    formats = {(name, name): kind for name, kind in kinds.items()}
    frame = with_columns(records, [(name, name) for name in names])
    notes = list(comparison.warnings)
    return Table(title, frame, 2, [], notes, unit.decimals, formats, slug="gain")


def cost_table(comparison: Comparison) -> Table:
    """What a gain costs: prompt tokens and seconds per document of both arms, and the gain per 1,000 more tokens.

    Columns that are empty for every row are left out. Raises UserError if no cost is known.
    """
    unit = comparison_unit(comparison)
    arms = comparison.arms if comparison.arms[0] in VARIANTS else ("first", "second")
    gain = "gain" if comparison.higher_is_better else "change"
    columns: list[Name] = [
        ("model", "model"),
        ("task", "task"),
        ("n", "n"),
        (gain, gain),
        ("95% interval", "95% interval"),
    ]
    columns += [("prompt tokens", arm) for arm in arms] + [("seconds", arm) for arm in arms]
    per_token, per_second = (f"{gain} per", "1,000 tokens"), (f"{gain} per", "second")
    columns += [per_token, per_second, ("documents/s", arms[1])]
    records = []
    for row in comparison.table.to_dict("records"):
        change = unit.of(row["gain"])
        tokens, seconds = (row[f"second_{cost}"] - row[f"first_{cost}"] for cost in ("tokens", "seconds"))
        record = [str(row["model"]), dataset_name(str(row["dataset"])), int(row["n"]), change]
        record.append((unit.of(row["low"]), unit.of(row["high"])))
        record += [row[name] for name in ("first_tokens", "second_tokens", "first_seconds", "second_seconds")]
        record += [1000 * change / tokens if tokens > 0 else math.nan, change / seconds if seconds > 0 else math.nan]
        record.append(1 / row["second_seconds"] if row["second_seconds"] else math.nan)
        records.append(record)
    frame = with_columns(records, columns)
    empty = {tuple(c) for c in frame.columns if all(missing(v) for v in frame[c])}
    if {("prompt tokens", arms[1]), ("seconds", arms[1])} <= empty:
        raise UserError("no cost is known: evaluate with jrt-eval installed, or count tokens with --tokenizer")
    formats = {(gain, gain): "signed", ("95% interval", "95% interval"): "interval"}
    formats |= {per_token: "signed", per_second: "signed", ("documents/s", arms[1]): "three digits"}
    formats |= {(name, arm): "three digits" for name in ("prompt tokens", "seconds") for arm in arms}
    title = f"{unit.title}: what the {gain} of {comparison.arms[1]} over {comparison.arms[0]} costs, per document"
    frame = frame.drop(columns=list(empty))
    return Table(title, frame, 2, [], list(comparison.warnings), unit.decimals, formats, slug="cost")


def comparison_unit(comparison: Comparison) -> Unit:
    """How a comparison's scores are shown."""
    return Unit(comparison.metric, [1.0 if comparison.share else 2.0])


def overview_table(results: Results, comparison: Comparison | None) -> Table:
    """A row per model: its pooled scores (of a comparison once against twice), and how it was run.

    Columns that are empty for every model are left out.
    """
    scores = results.scores.astype({"model": object})
    unit = comparison_unit(comparison) if comparison is not None else Unit("", [])
    names = ["model", "size"]
    names += [*comparison.arms, "gain", "95% interval"] if comparison is not None else []
    settings = {"dtype": "dtype", "limit": "limit", "lm-eval": "lm_eval_version", "jrt-eval": "jrt_eval_version"}
    names += ["tasks", *settings, "last run (UTC)"]
    records: list[list[Any]] = []
    for model, part in scores.groupby("model", sort=True):
        record: list[Any] = [model, _parameters(results, str(model))]
        if comparison is not None:
            rows = comparison.table[comparison.table["model"].str.partition(" [")[0] == model]
            if len(rows):
                last = rows.iloc[-1]  # all tasks, or the only one
                record += [unit.of(last[name]) for name in ("first", "second", "gain")]
                record.append((unit.of(last["low"]), unit.of(last["high"])))
            else:
                record += [math.nan, math.nan, math.nan, None]
        record.append(str(single_tasks(part)["task"].nunique()))
        record += [_listed(part[name]) for name in settings.values()]
        record.append("" if part["time"].isna().all() else f"{part['time'].max():%Y-%m-%d %H:%M}")
        records.append(record)
    frame = with_columns(records, [(c, c) for c in names])
    empty = [c for c in frame.columns if all(missing(v) or v == "" for v in frame[c])]
    title = "Models"
    if comparison is not None:
        title += f"; {unit.title}, mean over the tasks read both ways"
    formats = {("gain", "gain"): "signed", ("95% interval", "95% interval"): "interval"}
    return Table(
        title,
        frame.drop(columns=empty),
        1 if ("size", "size") in list(map(tuple, empty)) else 2,
        decimals=unit.decimals,
        formats=formats,
        slug="overview",
    )


def version_warnings(results: Results) -> list[str]:
    """A line for each version that differs between the runs: scores of two versions may not compare."""
    scores = single_tasks(results.scores)
    notes = Notes()
    for column, what in (("lm_eval_version", "lm-eval"), ("jrt_eval_version", "jrt-eval")):
        if scores[column].nunique() > 1:
            notes.add(f"run with several versions of {what}: {_listed(scores[column])}")
    for task, part in scores.astype({"task": object}).groupby("task", sort=True):
        if part["task_version"].nunique() > 1:
            notes.add(f"several versions of the task ({_listed(part['task_version'])})", str(task))
    return notes.lines()


def failures_as_table(counts: pd.DataFrame, metric: str) -> Table:
    """`failure_table`'s counts as a table."""
    frame = counts.copy()
    frame["dataset"] = [dataset_name(str(d)) for d in frame["dataset"]]
    frame["variant"] = ["" if missing(v) else str(v) for v in frame["variant"]]
    names = ["model", "task", "read", "correct", "empty", "repetition", "from document", "not in document", "n"]
    frame.columns = pd.MultiIndex.from_tuples([(n, n) for n in names])
    return Table(f"answers by kind ({metric})", frame, 3, slug="failures")


def gain_by_table(bins: dict[str, pd.DataFrame], what: str, comparison: Comparison) -> Table:
    """`gain_by`'s bins of each model (or pair of models) as a table."""
    unit = comparison_unit(comparison)
    arms = comparison.arms if comparison.arms[0] in VARIANTS else ("first", "second")
    gain = "gain" if comparison.higher_is_better else "change"
    records = [
        [
            model,
            _range(row["low_edge"], row["high_edge"]),
            int(row["n"]),
            *[unit.of(row[name]) for name in ("first", "second", "gain")],
            (unit.of(row["low"]), unit.of(row["high"])),
        ]
        for model, frame in bins.items()
        for row in frame.to_dict("records")
    ]
    names = ["model", what, "n", *arms, gain, "95% interval"]
    formats = {(gain, gain): "signed", ("95% interval", "95% interval"): "interval"}
    frame = with_columns(records, [(n, n) for n in names])
    return Table(f"gain by {what}", frame, 2, [], [], unit.decimals, formats)


def dataset_name(dataset: str) -> str:
    """As the paper writes it."""
    return _NAMES.get(dataset) or (f"NQ-{dataset[3:]}" if dataset.startswith("nq_") else dataset)


def _variant_scores(
    results: Results, metric: str | None, filter_name: str | None, notes: Notes
) -> tuple[str, pd.DataFrame, Unit]:
    """The metric, the scores of tasks that can be read in several ways, and how they are shown."""
    chosen = score_metric(results, metric)
    scores = chosen_scores(results, chosen, notes, filter_name=filter_name)
    scores = scores[scores["variant"].notna()]
    if scores.empty:
        raise UserError(
            "no task here has a read-twice form: run jrt_<name> and jrt_<name>_twice, or the group jrt_prompt; "
            "`jrt-eval scores` shows any results"
        )
    return chosen, scores, Unit(chosen, scores["value"])


def _paper_rows(
    scores: pd.DataFrame, metric: str, cell: list[str], notes: Notes
) -> list[tuple[str, str, str, pd.Series[float]]]:
    """`(model, source, size, values)` per published table and model, of the data sets and protocols that were measured.

    scores: with the columns of `chosen_scores`. cell: the columns that values are indexed by.
    """
    lengths = [None if pd.isna(n) or n < 0 else int(n) for n in scores["context_length"]]
    protocols = [task_protocol(*row) for row in zip(scores["task"], scores["dataset"], lengths, strict=True)]
    measured = scores.assign(protocol=protocols)[["model", "dataset", "variant", "protocol", "context_length"]]
    paper = published_for(list(dict.fromkeys(scores["model"]))).drop(columns="context_length")
    other = sorted(set(paper["protocol"]) - set(protocols))
    paper = paper.merge(measured.drop_duplicates(), on=["model", "dataset", "variant", "protocol"])
    if paper.empty:
        told = f"; they are in {listed(other)}" if other else ""
        notes.add(f"no paper has these models and data sets in the protocols of these runs{told}")
        return []
    if metric != "contains":
        notes.add(f"published numbers are `contains`, these are {metric}")
    if (paper["paper"] != JRT).any():
        notes.add("published rows are matched by model, size, training tokens and protocol; prompts may still differ")
    rows = []
    for (model, name, number, corpus), part in paper.groupby(["model", "paper", "table", "corpus"]):
        source = f"{name}, Table {number}" if str(number).isdigit() else f"{name}, {number}"
        size = " ".join(filter(None, [part["params"].iloc[0], part["tokens"].iloc[0], str(corpus)]))
        rows.append((str(model), source, size, part.drop_duplicates(cell).set_index(cell)["value"]))
    return rows


def _lower(scores: pd.DataFrame, metric: str) -> bool:
    stated = scores["higher_is_better"].dropna()
    return is_higher_better(metric, bool(stated.iloc[0]) if len(stated) else None) is False


def _listed(values: pd.Series) -> str:
    return listed([f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(set(values.dropna()))])


def _parameters(results: Results, model: str) -> str:
    values = results.scores.loc[results.scores["model"] == model, "parameters"].dropna()
    if values.empty:
        return ""
    count = int(values.iloc[0])
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _ordered(datasets: Iterable[object]) -> list[str]:
    names = {str(d) for d in datasets}
    return [d for d in _ORDER if d in names] + sorted(names - set(_ORDER))


def _mean(numbers: list[float]) -> float:
    """nan where one is missing."""
    return sum(numbers) / len(numbers)


def _range(low: float, high: float) -> str:
    digits = 2 if high <= 1 else 0
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f} to {high:.{digits}f}"
