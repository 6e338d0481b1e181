"""`load_results`: the two frames in Python, from a collected folder or straight from lm-eval's output."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from jrt_eval.analysis.collecting import MANIFEST, scores_table, survey_tree
from jrt_eval.analysis.samples import BadSamples, conform, read_batches
from jrt_eval.analysis.schema import METRIC_PREFIX, predictions_schema
from jrt_eval.errors import UserError, nearest


@dataclass
class Results:
    """Tidy results; the columns are documented in `jrt_eval.analysis.schema`.

    scores: a row per run, task and metric. predictions: a row per run, document (and filter). skipped: file -> reason.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of_models(self, models: Iterable[str]) -> Results:
        """Only these models. Raises UserError for an unknown one."""
        known = [str(m) for m in self.scores["model"].unique()]
        wanted = list(models)
        for model in wanted:
            if model not in known:
                raise UserError(f"no model {model!r}{nearest(model, known)}: there are {', '.join(known)}")
        return replace(
            self,
            scores=self.scores[self.scores["model"].isin(wanted)],
            predictions=self.predictions[self.predictions["model"].isin(wanted)].reset_index(drop=True),
        )

    def of_tasks(self, tasks: Iterable[str]) -> Results:
        """Only these tasks; a data set's name (`fda`) means each of its variants. Raises UserError for an unknown one."""
        names = self.scores[["task", "dataset"]].drop_duplicates().astype(str)
        known = list(dict.fromkeys([*names["task"], *names["dataset"]]))
        wanted = set(tasks)
        for task in sorted(wanted):
            if task not in known:
                raise UserError(f"no task {task!r}{nearest(task, known)}: there are {', '.join(known)}")
        kept = names.loc[names["task"].isin(wanted) | names["dataset"].isin(wanted), "task"]
        return replace(
            self,
            scores=self.scores[self.scores["task"].isin(kept)],
            predictions=self.predictions[self.predictions["task"].isin(kept)].reset_index(drop=True),
        )

    def __repr__(self) -> str:
        models = self.scores["model"].nunique()
        tasks = self.scores["task"].nunique()
        return (
            f"Results({models} models, {tasks} tasks, {len(self.scores)} scores, {len(self.predictions)} predictions)"
        )


def load_results(folder: str | os.PathLike[str], *, keep: str = "newest", columns: list[str] | None = None) -> Results:
    """Load a folder that `jrt-eval collect` wrote, or a tree of lm-eval output (read into memory, nothing written).

    keep: as in `collect`; a collected folder has what its collect kept. columns: the prediction columns to load (all).
    Strings are Arrow-backed, names are categoricals, counts are nullable integers. Raises UserError.
    """
    root = Path(folder)
    if (root / MANIFEST).is_file() and (root / "scores.parquet").is_file():
        return _load_collected(root, columns)
    survey = survey_tree(root, keep=keep)
    tables: list[pa.Table] = []
    for sample in survey.samples:
        try:
            batches = list(read_batches(root / sample.path, sample.run))
        except BadSamples as error:
            survey.skipped[sample.path] = str(error)
            continue
        rows = sum(batch.num_rows for batch in batches)
        filters = {f for batch in batches for f in batch["filter"].unique().to_pylist()}
        if rows == 0:
            survey.skipped[sample.path] = "it is empty"
        elif sample.expected is not None and rows // max(len(filters), 1) < sample.expected:
            documents = rows // max(len(filters), 1)
            survey.skipped[sample.path] = f"half-written: {documents} of {sample.expected} documents"
        else:
            tables += batches
    metrics = {c.removeprefix(METRIC_PREFIX) for t in tables for c in t.column_names if c.startswith(METRIC_PREFIX)}
    schema = predictions_schema(sorted(metrics))
    predictions = pa.concat_tables([schema.empty_table(), *(conform(table, schema) for table in tables)])
    if columns is not None:
        predictions = predictions.select(_check(columns, schema))
    return Results(
        scores=_to_pandas(scores_table(survey.rows)),
        predictions=_to_pandas(predictions),
        skipped=dict(sorted(survey.skipped.items())),
        notes=survey.notes,
    )


def _load_collected(root: Path, columns: list[str] | None) -> Results:
    try:
        manifest = orjson.loads((root / MANIFEST).read_bytes())
        scores = pq.read_table(root / "scores.parquet")
        schema = pq.read_schema(root / "predictions" / "000-schema.parquet")
        wanted = None if columns is None else _check(columns, schema)
        parts = sorted((root / "predictions").glob("*.parquet"))
        predictions = pa_dataset.dataset([str(p) for p in parts], schema=schema).to_table(columns=wanted)
        skipped = pd.read_csv(root / "skipped.csv")
    except (OSError, KeyError, pa.ArrowInvalid, orjson.JSONDecodeError) as error:
        raise UserError(f"{root} is damaged ({str(error).splitlines()[0]}): delete it and collect again") from None
    return Results(
        scores=_to_pandas(scores),
        predictions=_to_pandas(predictions),
        skipped=dict(zip(skipped["file"], skipped["reason"], strict=True)),
        notes=list(manifest.get("notes", [])),
    )


def _check(columns: list[str], schema: pa.Schema) -> list[str]:
    for column in columns:
        if column not in schema.names:
            raise UserError(f"predictions have no column {column!r}{nearest(column, schema.names)}")
    return columns


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    types = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas(
        types_mapper=types.get, split_blocks=True, self_destruct=True
    )
    return frame
