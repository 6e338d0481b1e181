"""`load_results`: scores and predictions in Python, from collected folders or straight from lm-eval's output.

Scores are read at once, predictions on demand: a comparison needs a few narrow columns of a data set whose prompts may
be gigabytes. A *unit* is what one run said about one task; the units are known without reading any prediction, and
`Results.read` reads chosen columns of one.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jrt_eval.analysis.parse import Entry, keep_usable, parse_samples
from jrt_eval.analysis.samples import conform
from jrt_eval.analysis.schema import (
    METRIC_PREFIX,
    RUN_COLUMNS,
    SCORES,
    WEIGHT_PREFIX,
    predictions_schema,
    scores_schema,
)
from jrt_eval.analysis.tree import MANIFEST, Survey, scores_table, survey_tree
from jrt_eval.errors import UserError, nearest


@dataclass(frozen=True)
class Unit:
    """The predictions of one run for one task. numbers: its columns `metric_...` and `weight_...`."""

    run_id: str
    model: str
    task: str
    dataset: str
    variant: str | None
    context_length: int | None
    filters: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: int
    parts: tuple[Path, ...] = ()

    @property
    def metrics(self) -> list[str]:
        return [name.removeprefix(METRIC_PREFIX) for name in self.numbers if name.startswith(METRIC_PREFIX)]


class Results:
    """Tidy results; the columns are documented in `jrt_eval.analysis.schema`.

    scores: a row per run, task, metric and filter. predictions: a row per run, document and filter, read when first
    asked for. skipped: file -> reason, and notes; of a tree that was not collected they are complete once predictions
    or units have been asked for.
    """

    def __init__(
        self,
        scores: pd.DataFrame,
        predictions: pd.DataFrame | None = None,
        *,
        units: list[Unit] | None = None,
        survey: Survey | None = None,
        columns: list[str] | None = None,
        skipped: dict[str, str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.scores = scores
        self.skipped = dict(skipped or {})
        self.notes = list(notes)
        self._predictions = predictions
        self._units = units
        self._survey = survey
        self._columns = columns
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # parts of a survey; removed with the last Results
        self._rows: dict[Any, Any] | None = None  # of predictions in memory: the row numbers of each unit

    @property
    def units(self) -> list[Unit]:
        """What can be read, in the order of model and task."""
        if self._units is None:
            self._units = self._parse() if self._predictions is None else _units_of(self._predictions)
        return self._units

    @property
    def predictions(self) -> pd.DataFrame:
        """All predictions in memory. Strings are Arrow-backed, names are categoricals, counts are nullable integers."""
        if self._predictions is None:
            units = self.units
            schema = predictions_schema(name for unit in units for name in unit.numbers)
            if self._columns is not None:
                schema = pa.schema([schema.field(name) for name in _check(self._columns, schema.names)])
            tables = [conform(_table(part, schema.names), schema) for unit in units for part in unit.parts]
            self._predictions = to_pandas(pa.concat_tables([schema.empty_table(), *tables]))
        return self._predictions

    def read(self, unit: Unit, columns: list[str], first: int | None = None) -> pd.DataFrame:
        """These columns of one unit, of its `first` rows if that is given.

        A number column that the unit does not have is missing in every row.
        """
        if self._predictions is not None and self._columns is None:
            frame = self._predictions
            if self._rows is None:
                self._rows = dict(frame.groupby(["run_id", "task"], observed=True, sort=False).indices)
            rows = self._rows[unit.run_id, unit.task]
            return frame.iloc[rows[:first]].reindex(columns=columns).reset_index(drop=True)
        schema = predictions_schema(name for name in columns if name.startswith((METRIC_PREFIX, WEIGHT_PREFIX)))
        schema = pa.schema([schema.field(name) for name in columns])
        tables: list[pa.Table] = [schema.empty_table()]
        for part in unit.parts:
            left = None if first is None else first - sum(len(table) for table in tables)
            if left is None or left > 0:
                tables.append(conform(_table(part, columns, left), schema))
        return to_pandas(pa.concat_tables(tables))

    def with_predictions(self, predictions: pd.DataFrame) -> Results:
        """The same results with other predictions."""
        changed = copy.copy(self)
        changed._predictions, changed._units, changed._rows = predictions, None, None
        return changed

    def of_models(self, models: Iterable[str]) -> Results:
        """Only these models. Raises UserError for an unknown one."""
        known = [str(m) for m in self.scores["model"].unique()]
        wanted = list(models)
        for model in wanted:
            if model not in known:
                raise UserError(f"no model {model!r}{nearest(model, known)}: there are {', '.join(known)}")
        return self._only("model", set(wanted))

    def of_tasks(self, tasks: Iterable[str]) -> Results:
        """Only these tasks; a data set's name (`fda`) means each of its variants. Raises UserError for an unknown one."""
        names = self.scores[["task", "dataset"]].drop_duplicates().astype(str)
        known = list(dict.fromkeys([*names["task"], *names["dataset"]]))
        wanted = set(tasks)
        for task in sorted(wanted):
            if task not in known:
                raise UserError(f"no task {task!r}{nearest(task, known)}: there are {', '.join(known)}")
        return self._only("task", set(names.loc[names["task"].isin(wanted) | names["dataset"].isin(wanted), "task"]))

    def _only(self, column: str, names: set[str]) -> Results:
        changed = copy.copy(self)
        changed.scores = self.scores[self.scores[column].isin(names)]
        if self._predictions is not None:
            changed._predictions = self._predictions[self._predictions[column].isin(names)].reset_index(drop=True)
            changed._units = changed._rows = None
        elif self._survey is not None and self._units is None:
            changed._survey = copy.copy(self._survey)
            changed._survey.samples = [s for s in self._survey.samples if s.run[column] in names]
        else:
            changed._units = [unit for unit in self.units if getattr(unit, column) in names]
        return changed

    def _parse(self) -> list[Unit]:
        """Parse the sample files of a tree that was not collected, into a temporary folder."""
        if self._survey is None:
            return []
        self._folder = tempfile.TemporaryDirectory(prefix="jrt-eval-")
        folder = Path(self._folder.name)
        entries = parse_samples(self._survey.samples, folder)
        before = len(self._survey.notes)
        used = keep_usable(self._survey, entries)
        self.skipped = dict(sorted(self._survey.skipped.items()))
        self.notes += self._survey.notes[before:]
        return _units(used.values(), folder)

    def __repr__(self) -> str:
        models = self.scores["model"].nunique()
        tasks = self.scores["task"].nunique()
        predictions = sum(unit.rows for unit in self.units)
        return f"Results({models} models, {tasks} tasks, {len(self.scores)} scores, {predictions} predictions)"


def load_results(*folders: str | os.PathLike[str], keep: str = "newest", columns: list[str] | None = None) -> Results:
    """Load folders that `jrt-eval collect` wrote, or trees of lm-eval output (nothing is written there).

    keep: as in `collect`; a collected folder has what its collect kept. columns: the columns of `predictions` (all).
    Raises UserError.
    """
    roots = [Path(folder) for folder in folders]
    collected = [root for root in roots if (root / MANIFEST).is_file() and (root / "scores.parquet").is_file()]
    if not roots or (collected and len(collected) < len(roots)):
        raise UserError(
            "name folders of results"
            if not roots
            else f"{collected[0]} was collected and others were not: name one kind"
        )
    if collected:
        return _joined([_load_collected(root, columns) for root in roots])
    survey = survey_tree(roots, keep=keep)
    return Results(
        to_pandas(scores_table(survey.rows)),
        survey=survey,
        columns=columns,
        skipped=dict(sorted(survey.skipped.items())),
        notes=survey.notes,
    )


def _load_collected(root: Path, columns: list[str] | None) -> Results:
    for attempt in (1, 2):  # a collect may be replacing the files just now
        try:
            manifest = orjson.loads((root / MANIFEST).read_bytes())
            scores = conform(pq.read_table(root / "scores.parquet"), scores_schema())  # an older version's lack columns
            used = [entry for entry in manifest["samples"].values() if entry["used"]]
            units = _units(used, root / "predictions")
            lost = next((str(part) for unit in units for part in unit.parts if not part.is_file()), None)
            if lost is not None:
                raise FileNotFoundError(f"{lost} is gone")
            if columns is not None:
                _check(columns, predictions_schema(n for unit in units for n in unit.numbers).names)
            return Results(
                to_pandas(scores),
                units=units,
                columns=columns,
                skipped=dict(sorted(manifest["skipped"].items())),
                notes=manifest["notes"],
            )
        except (OSError, KeyError, TypeError, pa.ArrowInvalid, orjson.JSONDecodeError) as error:
            if attempt == 2:
                told = str(error).splitlines()[0]
                raise UserError(f"{root} is damaged ({told}): delete it and collect again") from None
    raise AssertionError


def _joined(results: Sequence[Results]) -> Results:
    if len(results) == 1:
        return results[0]
    kinds = {column.name: "category" for column in SCORES if column.kind == "category"}
    plain = [r.scores.astype(dict.fromkeys(kinds, object)) for r in results]
    scores = pd.concat(plain, ignore_index=True).astype(kinds)
    seen: set[tuple[str, str]] = set()
    units = []
    for unit in (unit for r in results for unit in r.units):
        if (unit.run_id, unit.task) not in seen:
            units.append(unit)
        seen.add((unit.run_id, unit.task))
    return Results(
        scores.drop_duplicates(["run_id", "task", "metric", "filter"], ignore_index=True),
        units=units,
        columns=results[0]._columns,
        skipped={path: reason for r in results for path, reason in r.skipped.items()},
        notes=dict.fromkeys(note for r in results for note in r.notes),
    )


def _units(entries: Iterable[Entry], folder: Path) -> list[Unit]:
    units = [
        Unit(
            **{name: entry["run"][name] for name in RUN_COLUMNS},
            filters=tuple(entry["filters"]),
            numbers=tuple(entry["numbers"]),
            rows=entry["rows"],
            parts=tuple(folder / part for part in entry["parts"]),
        )
        for entry in entries
    ]
    return sorted(units, key=lambda unit: (unit.model, unit.task, unit.run_id))


def _units_of(frame: pd.DataFrame) -> list[Unit]:
    """The units of predictions in memory."""
    numbers = [c for c in frame.columns if c.startswith((METRIC_PREFIX, WEIGHT_PREFIX))]
    units = []
    for (run_id, task), part in frame.groupby(["run_id", "task"], observed=True):
        first = part.iloc[0]
        units.append(
            Unit(
                run_id=str(run_id),
                model=str(first["model"]),
                task=str(task),
                dataset=str(first["dataset"]),
                variant=_or_none(first["variant"]),
                context_length=_or_none(first["context_length"]),
                filters=tuple(sorted(str(f) for f in part["filter"].unique())),
                numbers=tuple(c for c in numbers if part[c].notna().any()),
                rows=len(part),
            )
        )
    return sorted(units, key=lambda unit: (unit.model, unit.task, unit.run_id))


def _or_none(value: Any) -> Any:
    return None if pd.isna(value) else value


def _table(part: Path, names: list[str], first: int | None = None) -> pa.Table:
    """Those of the columns that the part has, of its first rows."""
    try:
        with pq.ParquetFile(part) as file:
            names = [name for name in names if name in file.schema_arrow.names]
            if first is None:
                return file.read(names)
            batches = file.iter_batches(batch_size=max(first, 1), columns=names)
            found = next(batches, None)
            return pa.Table.from_batches([found]) if found is not None else file.read(names)
    except (OSError, pa.ArrowInvalid) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{part} is damaged ({told}): delete the folder and collect again") from None


def _check(columns: list[str], known: list[str]) -> list[str]:
    for column in columns:
        if column not in known:
            raise UserError(f"predictions have no column {column!r}{nearest(column, known)}")
    return columns


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Strings stay Arrow-backed, dictionaries become categoricals, integers and booleans nullable."""
    types = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas(
        types_mapper=types.get, split_blocks=True, self_destruct=True
    )
    return frame
