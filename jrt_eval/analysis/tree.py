"""What lm-eval left in a folder tree: the runs, their models' labels, and the sample files that belong to them.

Reads result files, but no samples. `collecting` writes what is found here, `load` reads it directly.
"""

from __future__ import annotations

import os
import re
import stat as modes
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from jrt_eval.analysis.notes import Notes, listed
from jrt_eval.analysis.runs import RESULT_NAME, SAMPLE_NAME, NotAResult, parse_result, read_run
from jrt_eval.analysis.schema import RUN_COLUMNS, SEEDS, SETTINGS, scores_schema
from jrt_eval.errors import UserError

MANIFEST = "manifest.json"
SCRATCH = ".unfinished-"  # how names of files and folders begin that are still being written

# Folders of tools, where lm-eval writes nothing.
_FOREIGN = {".git", ".hg", ".svn", ".venv", ".tox", ".nox", "node_modules", "__pycache__", ".ipynb_checkpoints"}

Stamp = list[int]  # [size in bytes, modification time in ns]


@dataclass
class SampleFile:
    """A sample file that belongs to a run."""

    path: str  # relative to the collected folder; its name in manifests and messages
    location: Path
    stamp: Stamp
    task: str
    run: dict[str, Any]  # values of RUN_COLUMNS
    expected: int | None  # documents by the result file


@dataclass
class Survey:
    """What was found in a tree: kept score rows, the sample files that go with them, and what was left out."""

    where: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # path -> reason
    superseded: int = 0  # tasks of runs that a newer run of the same thing replaced
    notes: list[str] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # path -> {"stamp", and "run" or "reason"}


@dataclass(frozen=True)
class _File:
    path: str
    location: Path
    folder: str  # of `path`, with the slash
    name: str
    stamp: Stamp


def find_results(folder: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Path]]]:
    """Path, JSON and sample files (by task) of every result file under a folder; others are passed over.

    Raises UserError if the folder does not exist.
    """
    files = _files([folder], Survey(str(folder)))
    samples: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for file in files:
        if match := SAMPLE_NAME.match(file.name):
            samples[file.folder, match[2]][match[1]] = file.location
    for file in files:
        if SAMPLE_NAME.match(file.name) or file.name.endswith(".jsonl"):
            continue
        try:
            data = parse_result(file.location.read_bytes())
        except (NotAResult, OSError):
            continue
        dated = RESULT_NAME.match(file.name)
        yield file.path, data, samples.get((file.folder, dated[1]), {}) if dated else {}


def survey_tree(roots: Sequence[Path], *, keep: str = "newest", known: dict[str, Any] | None = None) -> Survey:
    """Read the result files under `roots` and find their samples. Raises UserError.

    keep: `newest` or `all` of several runs that differ in nothing that changes a score. known: entries of an earlier
    `Survey.results`, reused for files with the same stamp.
    """
    if keep not in {"newest", "all"}:
        raise UserError(f"keep is {keep!r}: it can be 'newest' or 'all'")
    survey = Survey(", ".join(map(str, roots)))
    files = _files(roots, survey)
    runs = _read_results(files, survey, known or {})
    notes = Notes()
    _label(list(runs.values()), notes)
    _name_variants(list(runs.values()))
    _tie_samples(files, runs, _newest(runs) if keep == "newest" else _every(runs), survey)
    if not survey.rows:
        raise UserError(_nothing_found(survey))
    for run in runs.values():
        for name in run["unread"]:
            notes.add("metrics that are lists, not numbers, are left out", name)
    survey.notes = notes.lines()
    survey.rows.sort(key=lambda r: (r["time"] or "", r["file"], r["task"], r["metric"], r["filter"]))
    survey.samples.sort(key=lambda s: s.path)
    return survey


def refuse_skipped(survey: Survey) -> None:
    """Raise UserError if anything was skipped (`--strict`)."""
    if survey.skipped:
        path, reason = next(iter(survey.skipped.items()))
        more = f" (and {len(survey.skipped) - 1} more)" if len(survey.skipped) > 1 else ""
        raise UserError(f"{path}: {reason}{more}; without --strict it is skipped")


def grouped(skipped: dict[str, str]) -> list[str]:
    """`reason: file, file and 7 more` for each reason."""
    notes = Notes()
    for path, reason in skipped.items():
        notes.add(f"skipped, {reason}", path)
    return notes.lines()


def scores_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Score rows as an Arrow table in the schema of scores."""
    schema = scores_schema()
    rows = list(rows)
    columns = []
    for column in schema:
        values = [row.get(column.name) for row in rows]
        if pa.types.is_timestamp(column.type) or pa.types.is_dictionary(column.type):
            columns.append(pa.array(values, pa.string()).cast(column.type))
        else:
            columns.append(pa.array(values, column.type))
    return pa.table(columns, schema=schema)


def _files(roots: Sequence[Path], survey: Survey) -> list[_File]:
    found: dict[str, _File] = {}
    for root in roots:
        if not root.is_dir() and len(roots) == 1:
            missing = not os.path.lexists(root)
            raise UserError(
                f"no such folder: {root}"
                if missing
                else f"{root} is a file: name the folder that lm_eval's --output_path wrote to"
            )
        if not root.is_dir():
            survey.skipped[_display(str(root))] = "not a folder"
            continue
        prefix = "" if len(roots) == 1 else _display(root.as_posix()).rstrip("/") + "/"
        for location in _walk(root, prefix, survey):
            path = prefix + _display(location.relative_to(root).as_posix())
            try:
                status = location.stat()
            except OSError as error:
                survey.skipped[path] = f"cannot be read ({error.strerror})"
                continue
            if not modes.S_ISREG(status.st_mode):
                survey.skipped[path] = "not a regular file"
                continue
            name = path.rsplit("/", 1)[-1]
            stamp = [status.st_size, status.st_mtime_ns]
            found[path] = _File(path, location, path[: -len(name)], name, stamp)
    return list(found.values())


def _walk(root: Path, prefix: str, survey: Survey) -> Iterator[Path]:
    """JSON files under root, in order, through links to folders; not what `collect` wrote, nor folders of tools."""

    def unreadable(error: OSError) -> None:
        where = Path(str(error.filename)).relative_to(root).as_posix()
        survey.skipped[prefix + _display(where)] = f"cannot be read ({error.strerror})"

    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        if MANIFEST in files and "scores.parquet" in files:
            folders[:] = []
            continue
        try:
            status = os.stat(folder)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was read, or to one above
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if f not in _FOREIGN and not f.startswith(SCRATCH))
        for name in sorted(files):
            if name.endswith((".json", ".jsonl")) and not name.startswith(SCRATCH):
                yield Path(folder) / name


def _display(path: str) -> str:
    """A path as text that UTF-8 can hold."""
    return os.fsencode(path).decode("utf-8", "replace")


def _read_results(files: list[_File], survey: Survey, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs by the path of their result file, each once."""
    seen: dict[str, str] = {}
    for file in files:
        if SAMPLE_NAME.match(file.name):
            continue
        if file.name.endswith(".jsonl"):
            survey.skipped[file.path] = "foreign: not named as lm-eval names samples"
            continue
        entry = known.get(file.path)
        if entry is None or entry["stamp"] != file.stamp:
            entry = _result_entry(file)
        survey.results[file.path] = entry
        if "reason" in entry:
            survey.skipped[file.path] = entry["reason"]
        elif entry["run"]["run_id"] in seen:
            survey.skipped[file.path] = f"a copy of {seen[entry['run']['run_id']]}"
        else:
            seen[entry["run"]["run_id"]] = file.path
    return {path: survey.results[path]["run"] for path in seen.values()}


def _result_entry(file: _File) -> dict[str, Any]:
    try:
        return {"stamp": file.stamp, "run": read_run(file.location.read_bytes(), file.path), "new": True}
    except NotAResult as error:
        return {"stamp": file.stamp, "reason": str(error), "new": True}
    except OSError as error:
        return {"stamp": file.stamp, "reason": f"cannot be read ({error.strerror})", "new": True}


def _label(runs: list[dict[str, Any]], notes: Notes) -> None:
    """Give each run its model's label: the name, followed by what tells several models of one name apart.

    Arguments tell models apart where one run has them and another has not. What a run recorded of its model (a hash,
    the number of parameters) tells them apart only where two runs recorded different values.
    """
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_name[run["rows"][0]["model_name"]].append(run)
    for name, group in by_name.items():
        told: list[tuple[str, str]] = []  # (where the value is, key)
        for place in ("args", "recorded"):
            for key in sorted({key for run in group for key in run[place]}):
                values = {run[place].get(key) for run in group}
                if place == "recorded":
                    values.discard(None)
                if len(values) > 1:
                    told.append((place, key))
        for run in group:
            parts = [
                value if key in {"model_source", "dtype"} else f"{key}={value}"
                for place, key in told
                if (value := run[place].get(key)) is not None
            ]
            run["label"] = f"{name} ({', '.join(parts)})" if parts else name
        labels = sorted({run["label"] for run in group})
        if len(labels) > 1:
            notes.add(f"{len(labels)} different models have the name {name}; kept apart as {listed(labels)}")


def _name_variants(runs: list[dict[str, Any]]) -> None:
    """A task that is the base of variants (`arc_easy` of `arc_easy_twice`) was read once."""
    with_variants = {row["dataset"] for run in runs for row in run["rows"] if row["variant"] not in {None, "once"}}
    for run in runs:
        base = {row["task"] for row in run["rows"]} & with_variants
        run["once"] = sorted(t for t in base if all(r["variant"] is None for r in run["rows"] if r["task"] == t))


def _kept_row(run: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    variant = "once" if row["task"] in run["once"] and not row["group"] else row["variant"]
    return {**row, "model": run["label"], "variant": variant}


def _tie_samples(
    files: list[_File], runs: dict[str, dict[str, Any]], kept: set[tuple[str, str]], survey: Survey
) -> None:
    """Fill the survey with the kept rows and their sample files; other sample files are skipped with a reason."""
    samples: dict[tuple[str, str], list[tuple[str, _File]]] = defaultdict(list)
    for file in files:
        match = SAMPLE_NAME.match(file.name)
        if match:
            samples[(file.folder, match[2])].append((match[1], file))
    survey.superseded = len(_every(runs)) - len(kept)
    by_path = {file.path: file for file in files}
    answered: set[tuple[str, str]] = set()  # folders and dates of sample files that are accounted for
    for path, reason in survey.skipped.items():
        copy = RESULT_NAME.match(by_path[path].name) if path in by_path else None
        if copy and reason.startswith("a copy of "):
            answered.add((by_path[path].folder, copy[1]))
    for path, run in runs.items():
        rows = [_kept_row(run, row) for row in run["rows"]]
        survey.rows += [row for row in rows if (path, row["task"]) in kept]
        dated = RESULT_NAME.match(by_path[path].name)
        if dated is None:
            continue
        key = (by_path[path].folder, dated[1])
        answered.add(key)
        by_task = {row["task"]: row for row in rows}
        for task, file in samples.get(key, []):
            row = by_task.get(task)
            if row is None:
                survey.skipped[file.path] = f"its result file {path} has no task {task!r}"
            elif (path, task) in kept:
                exact = _version(row["lm_eval_version"]) >= (0, 4, 12)  # older ones count documents without --samples
                expected = row["n"] if exact else None
                values = {c: row.get(c) for c in RUN_COLUMNS}
                survey.samples.append(SampleFile(file.path, file.location, file.stamp, task, values, expected))
    for key, found in samples.items():
        if key not in answered:
            for _, file in found:
                survey.skipped[file.path] = "no usable result file of the same folder and date"


def _every(runs: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    return {(path, row["task"]) for path, run in runs.items() for row in run["rows"]}


def _newest(runs: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    """(file, task) of the newest of all runs of a task that are equal in model, settings and seeds."""
    newest: dict[tuple[Any, ...], tuple[str, str, str]] = {}
    for path, run in runs.items():
        for row in run["rows"]:
            subset = row["n"] if (row["n"] or 0) < (row["n_original"] or 0) else None
            thing = (run["label"], row["task"], subset, *(row[name] for name in (*SETTINGS, *SEEDS)))
            candidate = (row["time"] or "", path, row["task"])
            newest[thing] = max(newest.get(thing, candidate), candidate)
    return {(path, task) for _, path, task in newest.values()}


def _version(text: str | None) -> tuple[int, ...]:
    return tuple(int(part[:9]) for part in re.findall(r"\d+", text or "")[:3])


def _nothing_found(survey: Survey) -> str:
    """The error line for a tree without a single usable result."""
    if survey.skipped:
        path, reason = next(iter(survey.skipped.items()))
        more = f" and {len(survey.skipped) - 1:,} more" if len(survey.skipped) > 1 else ""
        return f"nothing to collect under {survey.where}: {path}: {reason}{more}"
    return f"nothing to collect under {survey.where}: run lm_eval with --output_path {survey.where} --log_samples first"
