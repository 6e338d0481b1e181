"""`collect`: a folder tree of lm-eval output -> `scores` and `predictions` as parquet, incrementally.

    OUT/scores.parquet, scores.csv         one row per run, task and metric
    OUT/predictions/*.parquet              one data set of parts; 000-schema.parquet has no rows and all columns
    OUT/skipped.csv                        files that could not be used, and why
    OUT/manifest.json                      what was read, by path, size and time: what is in it is not read again

Everything new is written beside the old and renamed at the end, so a collect that fails leaves OUT as it was.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jrt_eval._version import __version__
from jrt_eval.analysis.runs import RESULT_NAME, SAMPLE_NAME, NotAResult, read_run
from jrt_eval.analysis.samples import conform, ranges
from jrt_eval.analysis.schema import RUN_COLUMNS, predictions_schema, scores_schema
from jrt_eval.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest and the parts; another number there means: read everything again

Stamp = list[int]  # [size in bytes, modification time in ns]


@dataclass
class SampleFile:
    """A sample file that belongs to a run."""

    path: str
    stamp: Stamp
    task: str
    run: dict[str, Any]  # values of RUN_COLUMNS
    expected: int | None  # documents by the result file


@dataclass
class Survey:
    """What a tree holds: kept score rows, the sample files that go with them, and what was left out."""

    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # path -> reason
    superseded: int = 0  # tasks of runs that a newer run of the same thing replaced
    notes: list[str] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # path -> {"stamp", and "run" or "reason"}


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
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    keep: str = "newest",
    strict: bool = False,
    workers: int | None = None,
) -> Collected:
    """Collect lm-eval output under `folder` into `out` (default: `folder/collected`).

    keep: `newest` or `all` of several runs of the same thing (same model, revision, arguments, task, few-shot count,
    limit and window). strict: any file that would be skipped is an error. workers: processes that parse samples
    (default: the CPUs, at most 8). Raises UserError.
    """
    root = Path(folder)
    target = Path(out) if out is not None else root / "collected"
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: --out names a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"{target} is not empty and was not made by collect: name another --out")
    known = _load_manifest(target)
    survey = survey_tree(root, keep=keep, known=known.get("results", {}))
    if strict:
        refuse_skipped(survey)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        return _write(survey, target, scratch, known.get("samples", {}), strict, workers)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def survey_tree(root: Path, *, keep: str = "newest", known: dict[str, Any] | None = None) -> Survey:
    """Read the result files under `root` and find their samples. Reads no samples. Raises UserError."""
    if keep not in {"newest", "all"}:
        raise UserError(f"keep is {keep!r}: it can be 'newest' or 'all'")
    if not root.exists():
        raise UserError(f"no such folder: {root}")
    if not root.is_dir():
        raise UserError(f"{root} is a file: name the folder that lm_eval's --output_path wrote to")
    survey = Survey(root)
    sample_paths: dict[tuple[str, str], list[tuple[str, str, Stamp]]] = defaultdict(list)
    seen: dict[str, str] = {}
    for path, stamp in _walk(root):
        name = path.rsplit("/", 1)[-1]
        sample = SAMPLE_NAME.match(name)
        if sample:
            sample_paths[(path[: -len(name)], sample[2])].append((sample[1], path, stamp))
        elif name.endswith(".jsonl"):
            survey.skipped[path] = "foreign: not named as lm-eval names samples"
        else:
            entry = _result_entry(root, path, stamp, (known or {}).get(path))
            survey.results[path] = entry
            if "reason" in entry:
                survey.skipped[path] = entry["reason"]
            elif entry["run"]["run_id"] in seen:
                survey.skipped[path] = f"a copy of {seen[entry['run']['run_id']]}"
            else:
                seen[entry["run"]["run_id"]] = path
    runs = {path: survey.results[path]["run"] for path in seen.values()}
    _label(runs, survey.notes)
    kept = _newest(runs) if keep == "newest" else {(p, r["task"]) for p, run in runs.items() for r in run["rows"]}
    every = {(p, r["task"]) for p, run in runs.items() for r in run["rows"]}
    survey.superseded = len(every) - len(kept)
    claimed: set[str] = set()
    for path, run in runs.items():
        name = path.rsplit("/", 1)[-1]
        rows = [{**r, "model": run["label"]} for r in run["rows"] if (path, r["task"]) in kept]
        survey.rows += rows
        dated = RESULT_NAME.match(name)
        if dated is None:
            continue
        by_task = {r["task"]: r for r in run["rows"]}
        for task, sample_path, stamp in sample_paths.get((path[: -len(name)], dated[1]), []):
            claimed.add(sample_path)
            row = by_task.get(task)
            if row is None:
                survey.skipped[sample_path] = f"its result file {path} has no task {task!r}"
            elif (path, task) in kept:
                values = {c: row.get(c) for c in RUN_COLUMNS} | {"model": run["label"]}
                exact = _version(row["lm_eval_version"]) >= (0, 4, 12)  # older ones count documents without --samples
                survey.samples.append(SampleFile(sample_path, stamp, task, values, row["n"] if exact else None))
    copies = {path for path in survey.results if survey.skipped.get(path, "").startswith("a copy")}
    copy_keys = {
        (path[: -len(name)], match[1])
        for path in copies
        for name in [path.rsplit("/", 1)[-1]]
        if (match := RESULT_NAME.match(name))
    }
    for key, found in sample_paths.items():
        for _, path, _ in found:
            if path not in claimed and key not in copy_keys:
                survey.skipped[path] = "no usable result file of the same folder and date"
    if not survey.rows:
        raise UserError(nothing_found(survey))
    survey.rows.sort(key=lambda r: (r["time"] or "", r["file"], r["task"], r["metric"], r["filter"]))
    survey.samples.sort(key=lambda s: s.path)
    return survey


def nothing_found(survey: Survey) -> str:
    """The error line for a tree without a single usable result."""
    if survey.skipped:
        path, reason = next(iter(survey.skipped.items()))
        more = f" and {len(survey.skipped) - 1} more" if len(survey.skipped) > 1 else ""
        return f"nothing to collect under {survey.root}: {path}: {reason}{more}"
    return f"nothing to collect under {survey.root}: run lm_eval with --output_path {survey.root} --log_samples first"


def refuse_skipped(survey: Survey) -> None:
    """Raise UserError if anything was skipped (`--strict`)."""
    if survey.skipped:
        path, reason = next(iter(survey.skipped.items()))
        more = f" (and {len(survey.skipped) - 1} more)" if len(survey.skipped) > 1 else ""
        raise UserError(f"{survey.root / path}: {reason}{more}; without --strict it is skipped")


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


def _walk(root: Path) -> Iterator[tuple[str, Stamp]]:
    """JSON files under root as (relative path, stamp), in order; not hidden folders, nor what collect wrote."""
    for folder, folders, files in os.walk(root):
        if MANIFEST in files and "scores.parquet" in files:
            folders[:] = []
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if name.endswith((".json", ".jsonl")) and not name.startswith("."):
                path = Path(folder) / name
                try:
                    stat = path.stat()
                except OSError:
                    continue  # a dangling link or a file that has just gone
                yield path.relative_to(root).as_posix(), [stat.st_size, stat.st_mtime_ns]


def _result_entry(root: Path, path: str, stamp: Stamp, known: dict[str, Any] | None) -> dict[str, Any]:
    if known is not None and known["stamp"] == stamp:
        return known
    try:
        return {"stamp": stamp, "run": read_run((root / path).read_bytes(), path), "new": True}
    except NotAResult as error:
        return {"stamp": stamp, "reason": str(error), "new": True}
    except OSError as error:
        return {"stamp": stamp, "reason": f"cannot be read ({error.strerror})", "new": True}


def _label(runs: dict[str, dict[str, Any]], notes: list[str]) -> None:
    """Give each run its model label: the name, followed where models share it by what tells them apart."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs.values():
        by_name[run["rows"][0]["model_name"]].append(run)
    for name, group in by_name.items():
        keys = sorted({key for run in group for key in run["identity"]})
        differing = [k for k in keys if len({run["identity"].get(k) for run in group}) > 1]
        for run in group:
            told = [
                value if key in {"model_source", "dtype"} else f"{key}={value}"
                for key in differing
                if (value := run["identity"].get(key)) is not None
            ]
            run["label"] = f"{name} ({', '.join(told)})" if told else name
        labels = sorted({run["label"] for run in group})
        if len(labels) > 1:
            notes.append(f"{len(labels)} different models have the name {name}; kept apart as {'; '.join(labels)}")


def _version(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text or "")[:3])


def _newest(runs: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    """(file, task) of the newest run of each thing: same model label, task, few-shot count, limit and window."""
    newest: dict[tuple[Any, ...], tuple[str, str, str]] = {}
    for path, run in runs.items():
        for row in run["rows"]:
            thing = (
                run["label"],
                row["task"],
                row["num_fewshot"],
                row["limit"],
                row["context_length"],
                row["answer_length"],
            )
            candidate = (row["time"] or "", path, row["task"])
            newest[thing] = max(newest.get(thing, candidate), candidate)
    return {(path, task) for _, path, task in newest.values()}


def _write(
    survey: Survey, target: Path, scratch: Path, known: dict[str, Any], strict: bool, workers: int | None
) -> Collected:
    entries: dict[str, dict[str, Any]] = {}
    fresh: list[SampleFile] = []
    for sample in survey.samples:
        entry = known.get(sample.path)
        if entry is None or entry["stamp"] != sample.stamp or not _parts_exist(target, entry):
            fresh.append(sample)
            continue
        entries[sample.path] = entry
        if entry["run"] != sample.run and "reason" not in entry:
            entries[sample.path] = _relabel(target, scratch, entry, sample)
    entries |= _parse(survey.root, fresh, scratch, workers)
    for sample in survey.samples:
        reason = entries[sample.path].get("reason") or _incomplete(sample, entries[sample.path])
        if reason:
            survey.skipped[sample.path] = reason
    if strict:
        refuse_skipped(survey)
    used = {p: e for p, e in entries.items() if p not in survey.skipped}
    metrics = sorted({m for e in used.values() for m in e["metrics"]})
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
    empty = predictions_schema(metrics).empty_table()
    pq.write_table(empty, scratch / "000-schema.parquet", compression="zstd")
    results = {p: {k: v for k, v in e.items() if k != "new"} for p, e in survey.results.items()}
    manifest = {
        "format": FORMAT,
        "jrt_eval": __version__,
        "notes": survey.notes,
        "results": results,
        "samples": entries,
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


def _publish(scratch: Path, target: Path, used: dict[str, dict[str, Any]]) -> None:
    """Move what is new into place; parts that nothing names any more go last."""
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


def _incomplete(sample: SampleFile, entry: dict[str, Any]) -> str | None:
    if entry["rows"] == 0:
        return "it is empty"
    documents = entry["rows"] // max(len(entry["filters"]), 1)
    if sample.expected is not None and documents < sample.expected:
        return f"half-written: {documents} of {sample.expected} documents"
    return None


def _parts_exist(target: Path, entry: dict[str, Any]) -> bool:
    return all((target / "predictions" / part).is_file() for part in entry.get("parts", []))


def _relabel(target: Path, scratch: Path, entry: dict[str, Any], sample: SampleFile) -> dict[str, Any]:
    """Known parts with other run columns (another model of the same name has appeared, say): rewritten without a
    parse.
    """
    parts = []
    for index, part in enumerate(entry["parts"]):
        table = pq.read_table(target / "predictions" / part)
        for name in RUN_COLUMNS:
            kind = table.schema.field(name).type
            value = pa.repeat(
                pa.scalar(sample.run[name], kind.value_type if pa.types.is_dictionary(kind) else kind),
                len(table),
            )
            table = table.set_column(table.column_names.index(name), name, value.cast(kind))
        parts.append(_part_name(sample, index))
        pq.write_table(conform(table, table.schema), scratch / parts[-1], compression="zstd", compression_level=1)
    return {**entry, "run": sample.run, "parts": parts}


def _part_name(sample: SampleFile, index: int) -> str:
    """Named after what is in it, so that a part is never overwritten by another."""
    digest = hashlib.sha256(orjson.dumps([sample.path, sample.stamp, sample.run])).hexdigest()[:16]
    return f"{digest}-{index:03d}.parquet"


def _parse(root: Path, fresh: list[SampleFile], scratch: Path, workers: int | None) -> dict[str, dict[str, Any]]:
    """Parse sample files into parts in `scratch`: manifest entries by path."""
    jobs: list[tuple[SampleFile, dict[str, Any]]] = []
    for sample in fresh:
        for index, (start, end) in enumerate(ranges(root / sample.path)):
            name = _part_name(sample, index)
            job: dict[str, Any] = {
                "path": str(root / sample.path),
                "target": str(scratch / name),
                "start": start,
                "end": end,
            }
            jobs.append((sample, {**job, "run": sample.run}))
    volume = sum(sample.stamp[0] for sample in fresh)
    count = min(workers or min(os.cpu_count() or 1, 8), len(jobs))
    outcomes = _run_here(jobs) if count < 2 or volume < 64 << 20 else _run_workers(jobs, count)
    entries: dict[str, dict[str, Any]] = {}
    for (sample, job), outcome in zip(jobs, outcomes, strict=True):
        if "error" in outcome:
            raise UserError(f"{outcome['error']}; nothing was changed")
        entry = entries.setdefault(
            sample.path,
            {"stamp": sample.stamp, "run": sample.run, "rows": 0, "metrics": [], "filters": [], "parts": []},
        )
        if "reason" in outcome:
            entry["reason"] = outcome["reason"]
            continue
        entry["rows"] += outcome["rows"]
        entry["metrics"] = sorted({*entry["metrics"], *outcome["metrics"]})
        entry["filters"] = sorted({*entry["filters"], *outcome["filters"]})
        if outcome["rows"]:
            entry["parts"].append(Path(job["target"]).name)
    for entry in entries.values():
        if "reason" in entry:
            entry.update(rows=0, parts=[])
    return entries


def _run_here(jobs: list[tuple[SampleFile, dict[str, Any]]]) -> list[dict[str, Any]]:
    from jrt_eval.analysis.worker import run_job

    return [run_job(job) for _, job in jobs]


def _run_workers(jobs: list[tuple[SampleFile, dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Share the jobs among `count` worker processes, largest first."""
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in sorted(range(len(jobs)), key=lambda i: -jobs[i][0].stamp[0]):
        pending.put(index)
    outcomes: list[dict[str, Any]] = [{"error": "a worker process ended early"} for _ in jobs]

    def serve() -> None:
        command = [sys.executable, "-m", "jrt_eval.analysis.worker"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JRT_EVAL_AUTOLOAD": "0"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            while True:
                try:
                    index = pending.get_nowait()
                except queue.Empty:
                    break
                worker.stdin.write(orjson.dumps(jobs[index][1]) + b"\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
                if not answer:
                    break
                outcomes[index] = orjson.loads(answer)
            worker.stdin.close()

    threads = [threading.Thread(target=serve) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _write_csv(table: pa.Table, path: Path) -> None:
    plain = [
        table[f.name].cast(f.type.value_type) if pa.types.is_dictionary(f.type) else table[f.name] for f in table.schema
    ]
    pa_csv.write_csv(pa.table(plain, names=table.column_names), path)


def _load_manifest(target: Path) -> dict[str, Any]:
    try:
        manifest = orjson.loads((target / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    usable = isinstance(manifest, dict) and manifest.get("format") == FORMAT and manifest.get("jrt_eval") == __version__
    return manifest if usable else {}
