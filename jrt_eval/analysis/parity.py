"""Parity: two runs of one model, on two backends say, compared document by document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from jrt_eval.analysis.comparison import summary
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.metrics import is_share
from jrt_eval.analysis.notes import Notes
from jrt_eval.analysis.pairing import document_numbers, find_arms, pair_arms
from jrt_eval.analysis.schema import SEEDS, SETTINGS
from jrt_eval.analysis.select import paired_metric, single_tasks
from jrt_eval.analysis.table import Table, with_columns
from jrt_eval.analysis.tables import Unit
from jrt_eval.errors import UserError

_TOLD = ("model_source", "dtype", "batch_size", "max_length", "lm_eval_version", "jrt_eval_version", *SETTINGS, *SEEDS)


def parity_table(
    first: Results, second: Results, *, metric: str | None = None, filter_name: str | None = None
) -> Table:
    """A row per task that both ran: score difference with its interval, identical answers, and where others part.

    The place of the first difference is the median over the answers that differ, in words, from 1. Notes say in which
    settings the runs differ. Each run may have one model. Raises UserError.
    """
    models = [_only_model(results) for results in (first, second)]
    metric = paired_metric(first, metric)
    paired_metric(second, metric)
    notes = Notes()
    if models[0] != models[1]:
        notes.add(f"the runs name two models: {models[0]} and {models[1]}")
    arms = {arm.task: arm for arm in find_arms(first, metric, notes, filter_name=filter_name)}
    others = {arm.task: arm for arm in find_arms(second, metric, notes, filter_name=filter_name)}
    records = []
    for task in sorted(arms.keys() & others.keys()):
        _tell_settings(first, second, task, notes)
        pairs = pair_arms(first, arms[task], others[task], metric, notes, second_results=second, texts=("generation",))
        if len(pairs):
            records.append(_row(task, pairs, metric))
    for task in sorted(arms.keys() ^ others.keys()):
        notes.add("in one run only", task)
    if not records:
        raise UserError("the two runs have no task with the same documents in common")
    unit = Unit(metric, [1.0 if records[0]["share"] else 2.0])
    rows = [
        [
            r["task"],
            r["n"],
            *(unit.of(r[name]) for name in ("first", "second", "gain")),
            (unit.of(r["low"]), unit.of(r["high"])),
            100 * r["identical"],
            r["place"],
        ]
        for r in records
    ]
    names = ["task", "n", "first", "second", "difference", "95% interval", "identical answers (%)", "first difference"]
    formats = {("difference", "difference"): "signed", ("95% interval", "95% interval"): "interval"}
    frame = with_columns(rows, [(name, name) for name in names])
    return Table(
        f"{unit.title}: parity of two runs", frame, 1, [], notes.lines(), unit.decimals, formats, slug="parity"
    )


def _row(task: str, pairs: pd.DataFrame, metric: str) -> dict[str, Any]:
    share = is_share(metric, [*pairs["first"].unique(), *pairs["second"].unique()])
    pairs = pairs.assign(stratum=task)
    pairs["document"] = document_numbers(pairs)
    texts = [pairs[name].fillna("").to_numpy(dtype=object) for name in ("generation", "generation_second")]
    same = np.array([a == b for a, b in zip(*texts, strict=True)])
    places = [_first_difference(a, b) for a, b in zip(*texts, strict=True) if a != b]
    return {
        "task": task,
        "share": share,
        "identical": float(same.mean()),
        "place": float(np.median(places)) if places else float("nan"),
        **summary([pairs], share=share, higher_is_better=True),
    }


def _first_difference(first: str, second: str) -> int:
    """The number of the first word that differs, from 1."""
    words, others = first.split(), second.split()
    return next(
        (i + 1 for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others)) + 1
    )


def _only_model(results: Results) -> str:
    names = sorted({str(name) for name in results.scores["model"].unique()})
    if len(names) != 1:
        raise UserError(
            f"parity compares two runs of one model; one folder has {', '.join(names)}: choose with --model"
        )
    return names[0]


def _tell_settings(first: Results, second: Results, task: str, notes: Notes) -> None:
    rows = [single_tasks(results.scores) for results in (first, second)]
    sides = [of_run[of_run["task"].astype(str) == task].iloc[-1] for of_run in rows]
    for name in _TOLD:
        values = [None if pd.isna(side[name]) else str(side[name]) for side in sides]
        if values[0] != values[1]:
            notes.add(f"{name} differs: {values[0] or 'none'} and {values[1] or 'none'}")
