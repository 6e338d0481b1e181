"""Which runs, metric and filter a table or comparison shows, and what runs of one model are called that differ in settings.

The rules, once: groups are not tasks; of a task's filters one is shown (`metrics.choose_filter`); of runs that are equal
in everything the newest is shown; a run on all documents is preferred to one with `--limit`; runs that differ in seeds
only are repeats; runs that differ in another setting are shown separately, under `model [setting]`.
"""

from __future__ import annotations

from typing import Any

import orjson
import pandas as pd

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.metrics import choose_filter, choose_metric
from jrt_eval.analysis.notes import Notes, counted
from jrt_eval.analysis.schema import DEPTH, LENGTH, SEEDS, SETTINGS
from jrt_eval.errors import UserError, nearest

_TEXT = ["run_id", "model", "task", "dataset", "variant", "metric", "filter", "chat_template", "task_version"]
_WITHOUT_LABEL = {"context_length", "limit"}  # settings with a place of their own in tables


def single_tasks(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks, without those of groups of tasks."""
    return scores[~scores["group"].fillna(False).astype(bool)]


def score_metric(results: Results, metric: str | None) -> str:
    """The metric of a score table. Raises UserError."""
    return choose_metric(single_tasks(results.scores)["metric"].astype(str), metric)


def paired_metric(results: Results, metric: str | None) -> str:
    """The metric of a paired comparison: one that samples hold. Raises UserError."""
    available = [name for unit in results.units for name in unit.metrics]
    if not available:
        raise UserError(
            "no predictions: run lm_eval with --log_samples, a paired comparison needs each document's score"
        )
    return choose_metric(available, metric, where="in the samples")


def chosen_scores(
    results: Results, metric: str, notes: Notes, *, filter_name: str | None = None, prefer_full: bool = True
) -> pd.DataFrame:
    """The scores to show: a row per model label, task and context length.

    In addition to the columns of scores: `label` (the model and what tells its runs apart), `runs` (repeats with other seeds),
    `sd` (over them; `value` is then their mean), and `shown` (the data set, with its filter if the task has several).
    """
    singles = _plain(single_tasks(results.scores))
    found = singles[singles["metric"] == metric]
    lacking = sorted(set(singles["task"]) - set(found["task"]))
    if lacking:
        notes.add(f"without {metric}, so left out", *lacking)
    found = _one_filter(tell_datasets_apart(found), notes, filter_name)
    found = choose_runs(found, notes, prefer_full=prefer_full)
    limited = found[found["limit"].notna()]
    for label, limit in zip(limited["label"], limited["limit"], strict=True):
        notes.add(f"with --limit {limit:g}, so not on all documents", label)
    return _mean_over_seeds(found, notes)


def tell_datasets_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the task's own name as data set where two tasks would share one.

    `jrt_fda` and lm-eval's own `fda` are both of the data set `fda`; with both in one model's runs, they are shown as
    `jrt_fda` and `fda`.
    """
    keys = ["model", "dataset", "variant", "context_length"]
    shared = rows[rows["variant"].notna()].groupby(keys, dropna=False)["task"].nunique()
    doubled = set(shared[shared > 1].index.get_level_values("dataset"))
    own = [
        task.removesuffix(f"_{variant}") if dataset in doubled else dataset
        for task, variant, dataset in zip(rows["task"], rows["variant"], rows["dataset"], strict=True)
    ]
    return rows.assign(dataset=pd.Series(own, index=rows.index, dtype=object))


def choose_runs(rows: pd.DataFrame, notes: Notes, *, prefer_full: bool = True) -> pd.DataFrame:
    """Rows (of scores, one metric and filter per task) of the runs to show, with their `label`.

    Runs that remain equal in model, task and settings differ in seeds.
    """
    settings = [name for name in SETTINGS if name != "limit"]
    subset = (rows["n"] < rows["n_original"]).fillna(False).astype(bool)
    rows = rows.assign(full=rows["limit"].isna() & ~subset).sort_values(["full", "time"], kind="stable")
    if prefer_full:
        thing = ["model", "task", *settings]
        best = rows.groupby(thing, dropna=False)["full"].transform("max")
        for model in rows.loc[rows["full"] != best, "model"].unique():
            notes.add("runs with --limit left out where a run on all documents exists", model)
        rows = rows[rows["full"] == best]
    thing = ["model", "task", *settings, "limit", *SEEDS]
    doubled = rows.duplicated(thing, keep="last")
    for model in rows.loc[doubled, "model"].unique():
        notes.add("several runs that are equal in settings and seeds: the newest is shown", model)
    rows = rows[~doubled]
    return rows.assign(label=label_settings(rows))


def label_settings(rows: pd.DataFrame) -> pd.Series[str]:
    """`model [setting, setting]`: the settings in which runs of one model differ on one and the same task."""
    differing: dict[str, list[str]] = {}
    for (model, _, _), part in rows.groupby(["model", "task", "context_length"], dropna=False):
        for name in SETTINGS:
            if name not in _WITHOUT_LABEL and len(part) > 1 and part[name].nunique(dropna=False) > 1:
                differing.setdefault(str(model), []).append(name)
        if part["limit"].nunique(dropna=False) > 1:
            differing.setdefault(str(model), []).append("limit")
    labels = []
    spread = {
        model: {name: rows.loc[rows["model"] == model, name] for name in names} for model, names in differing.items()
    }
    for row in rows.to_dict("records"):
        names = dict.fromkeys(name for name in SETTINGS if name in differing.get(row["model"], []))
        told = [text for name in names if (text := describe(name, row[name], spread[row["model"]][name]))]
        labels.append(f"{row['model']} [{', '.join(told)}]" if told else row["model"])
    return pd.Series(labels, index=rows.index, dtype=object)


def describe(setting: str, value: Any, among: pd.Series) -> str:
    """A setting in a few words; empty for its absence. among: the values that it is to be told from."""
    if setting == "gen_kwargs":
        return _generation_settings(value, among)
    if pd.isna(value):
        return ""
    if setting == "num_fewshot":
        return f"{value}-shot"
    if setting == "fewshot_as_multiturn":
        return "multi-turn"
    if setting == "thinking":
        return "thinking" if value else "no thinking"
    if setting == "system_instruction":
        return f"system: {value if len(value) < 24 else value[:20] + '...'}"
    if setting == "windows":
        asked = _kwargs(value)
        lengths = asked.get(LENGTH) if isinstance(asked.get(LENGTH), list) else []
        depths = asked.get(DEPTH)
        told = [f"context {_joined(lengths)}"] if lengths else []
        return ", ".join(told + ([f"depth {_joined(depths)}"] if depths is not None else []))
    if setting == "chat_template":
        return "chat template" + (f" {value[:6]}" if among.nunique() > 1 else "")
    names = {"task_version": "version", "answer_length": "answer", "limit": "limit", "context_length": "context"}
    return f"{names[setting]} {value:g}" if isinstance(value, float) else f"{names[setting]} {value}"


def settings_columns(rows: pd.DataFrame) -> list[str]:
    """The settings in which these rows differ at all."""
    return [name for name in SETTINGS if rows[name].nunique(dropna=False) > 1]


def _generation_settings(value: Any, among: pd.Series) -> str:
    every = [{} if pd.isna(text) else _kwargs(text) for text in among]
    keys = sorted({key for given in every for key in given})
    differing = [key for key in keys if len({str(given.get(key)) for given in every}) > 1]
    given = {} if pd.isna(value) else _kwargs(value)
    return ", ".join(f"{key}={_short(given[key])}" for key in differing if key in given)


def _kwargs(text: str) -> dict[str, Any]:
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"gen_kwargs": text}
    return given if isinstance(given, dict) else {"gen_kwargs": text}


def _joined(values: Any) -> str:
    return "/".join(_short(value) for value in (values if isinstance(values, list) else [values]))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_filter(rows: pd.DataFrame, notes: Notes, asked: str | None) -> pd.DataFrame:
    """The rows of one filter per task, with the data set's name as it is `shown`."""
    every = rows.groupby("task")["filter"].unique()
    if asked is not None and len(rows) and not any(asked in filters for filters in every):
        known = sorted({name for filters in every for name in filters})
        raise UserError(f"no filter {asked!r}{nearest(asked, known)}: there are {', '.join(known)}")
    chosen = {task: choose_filter(filters, asked) for task, filters in every.items()}
    for task, filters in every.items():
        if chosen[task] is None:
            notes.add(f"without the filter {asked}, so left out", str(task))
        elif len(filters) > 1 and asked is None:
            told = ", ".join(sorted(set(filters) - {chosen[task]}))
            notes.add(f"several filters: {chosen[task]} is shown, --filter shows {told}", str(task))
    rows = rows[rows["filter"] == rows["task"].map(chosen)]
    several = {task for task, filters in every.items() if len(filters) > 1}
    shown = [
        f"{dataset} ({name})" if task in several else dataset
        for task, dataset, name in zip(rows["task"], rows["dataset"], rows["filter"], strict=True)
    ]
    return rows.assign(shown=pd.Series(shown, index=rows.index, dtype=object))


def _mean_over_seeds(rows: pd.DataFrame, notes: Notes) -> pd.DataFrame:
    keys = ["label", "task", "context_length"]
    groups = rows.groupby(keys, dropna=False, sort=False)
    rows = rows.assign(
        runs=groups["run_id"].transform("size"),
        sd=groups["value"].transform("std"),
        value=groups["value"].transform("mean"),
    )
    for label, runs in zip(rows["label"], rows["runs"], strict=True):
        if runs > 1:
            notes.add(f"mean of {counted(runs, 'run')} with different seeds", label)
    return rows.drop_duplicates(keys, keep="last")


def _plain(scores: pd.DataFrame) -> pd.DataFrame:
    """Names as ordinary strings: categories that occur in no row would come back in groups."""
    return scores.astype(dict.fromkeys(_TEXT, object))
