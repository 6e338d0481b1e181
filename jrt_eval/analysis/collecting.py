"""`collect`: a folder tree of lm-eval output becomes `scores` and `predictions` as parquet, incrementally.

    OUT/scores.parquet, scores.csv         one row per run, task and metric
    OUT/predictions/*.parquet              one data set of parts; 000-schema.parquet has no rows and all columns
    OUT/skipped.csv                        files that were not used, whole or in part, and why
    OUT/manifest.json                      what was read, by path, size and time; a known file is not read again

New files are written into a hidden folder and moved into place at the end, so a collect that fails leaves OUT as it
was. A lock makes several collects into one folder wait for each other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jrt_eval._version import __version__
from jrt_eval.analysis.parse import Entry, keep_usable, parse_samples, part_name
from jrt_eval.analysis.samples import conform, value_type
from jrt_eval.analysis.schema import LENGTH, RUN_COLUMNS, predictions_schema
from jrt_eval.analysis.tree import MANIFEST, SCRATCH, SampleFile, Survey, refuse_skipped, scores_table, survey_tree
from jrt_eval.errors import UserError
from jrt_eval.files import lock, reason, remove_unfinished

FORMAT = 4  # of the manifest and the parts; a folder with another number is read again as a whole
_LOCK = ".lock"


@dataclass(frozen=True)
class Collected:
    """The outcome of `collect`."""

    out: Path
    runs: int
    scores: int
    predictions: int
    read: int  # files that were parsed now
    reused: int  # files known from the collect before
    superseded: int
    skipped: dict[str, str]
    notes: list[str]


def collect(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    keep: str = "newest",
    strict: bool = False,
    workers: int | None = None,
) -> Collected:
    """Collect lm-eval output under `folders` into `out`. Raises UserError.

    out: by default `collected` in the folder; for several folders, in the folder that contains them all. keep: `newest`
    or `all` of several runs that are equal in model, task, settings and seeds. strict: any file that would be skipped
    is an error. workers: processes that parse samples (default: the CPUs, at most 8).
    """
    roots = [Path(folders)] if isinstance(folders, (str, os.PathLike)) else [Path(folder) for folder in folders]
    if not roots:
        raise UserError("name at least one folder to collect")
    target = Path(out) if out is not None else _common(roots) / "collected"
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: --out names a folder")
    if target.is_dir() and not (target / MANIFEST).is_file():
        others = [p for p in target.iterdir() if not p.name.startswith((_LOCK, SCRATCH))]
        if others:
            raise UserError(f"{target} is not empty and was not made by collect: name another --out")
    survey = survey_tree(roots, keep=keep, known=_load_manifest(target).get("results", {}))
    if strict:
        refuse_skipped(survey)
    with _locked(target):
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target))
        try:
            return _write(survey, target, scratch, strict, workers)
        except OSError as error:
            raise UserError(f"cannot write {target}: {reason(error)}; nothing was changed") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _common(roots: list[Path]) -> Path:
    if len(roots) == 1:
        return roots[0]
    return Path(os.path.commonpath([os.path.abspath(root.parent) for root in roots]))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of the folder. A folder that was made for the lock alone does not stay."""
    try:
        with lock(target / _LOCK):
            remove_unfinished(target)
            yield
    finally:
        if not (target / MANIFEST).is_file():
            with suppress(OSError):
                (target / _LOCK).unlink(missing_ok=True)
                target.rmdir()


def _write(survey: Survey, target: Path, scratch: Path, strict: bool, workers: int | None) -> Collected:
    known: dict[str, Entry] = _load_manifest(target).get("samples", {})
    entries: dict[str, Entry] = {}
    fresh: list[SampleFile] = []
    for sample in survey.samples:
        entry = known.get(sample.path)
        if entry is None or not _is_current(entry, sample) or not _parts_exist(target, entry):
            fresh.append(sample)
            continue
        entries[sample.path] = entry
        if entry["run"] != sample.run and entry.get("parts"):
            entries[sample.path] = _relabel(target, scratch, entry, sample)
    entries |= parse_samples(fresh, scratch, workers)
    used = keep_usable(survey, entries)
    if strict:
        refuse_skipped(survey)
    scores = scores_table(survey.rows)
    pq.write_table(scores, scratch / "scores.parquet", compression="zstd")
    _write_csv(scores, scratch / "scores.csv")
    skipped = pa.table(
        {
            "file": pa.array(survey.skipped, pa.string()),
            "reason": pa.array(survey.skipped.values(), pa.string()),
        }
    )
    _write_csv(skipped, scratch / "skipped.csv")
    empty = predictions_schema(n for e in used.values() for n in e["numbers"]).empty_table()
    pq.write_table(empty, scratch / "000-schema.parquet", compression="zstd")
    manifest = {
        "format": FORMAT,
        "jrt_eval": __version__,
        "notes": survey.notes,
        "skipped": survey.skipped,
        "results": {p: {k: v for k, v in e.items() if k != "new"} for p, e in survey.results.items()},
        "samples": {p: {**e, "used": p in used} for p, e in entries.items()},
    }
    (scratch / MANIFEST).write_bytes(orjson.dumps(manifest))
    _publish(scratch, target, used)
    return Collected(
        out=target,
        runs=len({row["run_id"] for row in survey.rows}),
        scores=len(survey.rows),
        predictions=sum(e["rows"] for e in used.values()),
        read=len(fresh) + sum("new" in e for e in survey.results.values()),
        reused=len(survey.samples) - len(fresh) + sum("new" not in e for e in survey.results.values()),
        superseded=survey.superseded,
        skipped=dict(sorted(survey.skipped.items())),
        notes=survey.notes,
    )


def _publish(scratch: Path, target: Path, used: dict[str, Entry]) -> None:
    """Move new files into place; parts that are no longer named are removed last."""
    folder = target / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    names = {part for entry in used.values() for part in entry["parts"]}
    for name in sorted(names):
        if (scratch / name).exists():
            os.replace(scratch / name, folder / name)
    os.replace(scratch / "000-schema.parquet", folder / "000-schema.parquet")
    for name in ("scores.parquet", "scores.csv", "skipped.csv", MANIFEST):
        os.replace(scratch / name, target / name)
    for old in folder.glob("*.parquet"):
        if old.name not in names and old.name != "000-schema.parquet":
            old.unlink()


def _is_current(entry: Entry, sample: SampleFile) -> bool:
    """Whether parts of an earlier collect hold what the sample file has now, other names of the run aside."""
    return bool(entry["stamp"] == sample.stamp and entry["run"][LENGTH] == sample.run[LENGTH])


def _parts_exist(target: Path, entry: Entry) -> bool:
    return all((target / "predictions" / part).is_file() for part in entry.get("parts", []))


def _relabel(target: Path, scratch: Path, entry: Entry, sample: SampleFile) -> Entry:
    """Write known parts with other run columns (another model of the same name appeared, say), without parsing."""
    parts = []
    for index, part in enumerate(entry["parts"]):
        table = pq.read_table(target / "predictions" / part)
        for name in RUN_COLUMNS:
            if name == LENGTH:
                continue  # a sample may have its own
            kind = table.schema.field(name).type
            value = pa.repeat(pa.scalar(sample.run[name], value_type(kind)), len(table))
            table = table.set_column(table.column_names.index(name), name, value.cast(kind))
        parts.append(part_name(sample, index))
        pq.write_table(conform(table, table.schema), scratch / parts[-1], compression="zstd", compression_level=1)
    return {**entry, "run": sample.run, "parts": parts}


def _write_csv(table: pa.Table, path: Path) -> None:
    columns = []
    for column in table.schema:
        values = table[column.name].cast(value_type(column.type))
        if pa.types.is_string(values.type):  # as `escape.csv_cell` does it
            formula = pc.match_substring_regex(values, r"^[=+\-@\t\r]")
            values = pc.if_else(formula, pc.binary_join_element_wise("'", values, ""), values)
        columns.append(values)
    pa_csv.write_csv(pa.table(columns, names=table.column_names), path)


def _load_manifest(target: Path) -> dict[str, Any]:
    try:
        manifest = orjson.loads((target / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    usable = isinstance(manifest, dict) and manifest.get("format") == FORMAT and manifest.get("jrt_eval") == __version__
    return manifest if usable else {}
