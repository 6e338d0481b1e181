"""Parsing sample files into parquet parts, in this process or in several; and the rule which sample files are usable."""

from __future__ import annotations

import hashlib
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from jrt_eval.analysis.notes import Notes, counted
from jrt_eval.analysis.samples import BadSamples, ranges, write_part
from jrt_eval.analysis.tree import SampleFile, Survey
from jrt_eval.errors import UserError

FEW_BYTES = 64 << 20  # one process parses this much before several have started

# A worker must not import from the current folder, so it takes that off the path before it imports anything.
# The last entry serves a package that is on the parent's path only.
_WORKER = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]]; "
    "from jrt_eval.analysis.parse import serve; serve()"
)

Entry = dict[str, Any]
"""What is known of a parsed sample file: `stamp`, `run`, `rows`, `numbers`, `filters`, `unread`, `bad` (lines), `parts`
(file names), and `reason` where it cannot be used or lines were left out.
"""


def parse_samples(samples: list[SampleFile], folder: Path, workers: int | None = None) -> dict[str, Entry]:
    """Write each sample file as parquet parts into `folder`; entries by path.

    workers: processes (default: the CPUs, at most 8). Raises UserError if a part cannot be written.
    """
    entries: dict[str, Entry] = {}
    jobs: list[tuple[SampleFile, dict[str, Any]]] = []
    for sample in samples:
        entries[sample.path] = {
            "stamp": sample.stamp, "run": sample.run, "rows": 0, "numbers": [], "filters": [], "unread": [], "bad": 0,
            "parts": [],
        }  # fmt: skip
        try:
            cuts = ranges(sample.location)
        except OSError as error:
            entries[sample.path]["reason"] = f"cannot be read ({error.strerror})"
            continue
        for index, (start, end) in enumerate(cuts):
            job = {"path": _encoded(sample.location), "target": _encoded(folder / part_name(sample, index))}
            jobs.append((sample, {**job, "run": sample.run, "start": start, "end": end}))
    volume = sum(sample.stamp[0] for sample, _ in jobs)
    count = min(workers or min(os.cpu_count() or 1, 8), len(jobs))
    alone = count < 2 or volume < FEW_BYTES
    outcomes = [run_job(job) for _, job in jobs] if alone else _run_workers(jobs, count)
    for (sample, job), outcome in zip(jobs, outcomes, strict=True):
        if "error" in outcome:
            raise UserError(f"{outcome['error']}; nothing was changed")
        _add(entries[sample.path], outcome, _decoded(job["target"]).name)
    return entries


def keep_usable(survey: Survey, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The usable entries. Says in `survey.skipped` and `survey.notes` what is left out, whole or in part."""
    notes = Notes()
    used: dict[str, Entry] = {}
    for sample in survey.samples:
        entry = entries[sample.path]
        reason = unusable(entry, sample.expected)
        if reason is not None:
            survey.skipped[sample.path] = reason
            continue
        used[sample.path] = entry
        if entry["bad"]:
            survey.skipped[sample.path] = f"{counted(entry['bad'], 'line')} of it left out ({entry['reason']})"
        for name in entry["unread"]:
            notes.add("metrics that are not one number per document cannot be compared", f"{sample.task}: {name}")
    survey.notes += notes.lines()
    return used


def unusable(entry: Entry, expected: int | None) -> str | None:
    """Why a parsed sample file cannot be used; None if it can.

    expected: documents by the result file, if that is known exactly. A file with fewer documents is half-written; lines
    that could not be read count as documents.
    """
    if "parts" not in entry or (entry["rows"] == 0 and entry.get("reason")):
        return str(entry["reason"])
    if entry["rows"] == 0:
        return "it is empty"
    documents = (entry["rows"] + entry["bad"]) // max(len(entry["filters"]), 1)
    if expected is not None and documents < expected:
        return f"half-written: {documents} of {expected} documents"
    return None


def part_name(sample: SampleFile, index: int) -> str:
    """Derived from what the part holds, so that two different parts never have one name."""
    digest = hashlib.sha256(orjson.dumps([sample.path, sample.stamp, sample.run])).hexdigest()[:16]
    return f"{digest}-{index:03d}.parquet"


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Parse one byte range: what is in it, `{"reason"}` if the file is unusable, `{"error"}` if no part can be written."""
    target = _decoded(job["target"])
    try:
        part = write_part(_decoded(job["path"]), target, job["run"], job["start"], job["end"])
    except BadSamples as error:
        return {"reason": str(error)}
    except OSError as error:
        if error.filename is not None and str(error.filename) == str(target):
            return {"error": f"cannot write {error.filename}: {error.strerror}"}
        return {"reason": f"cannot be read ({error.strerror or error})"}
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return {"reason": f"cannot be read ({str(error).splitlines()[0][:200]})"}
    return {
        "rows": part.rows,
        "numbers": sorted(part.numbers),
        "filters": sorted(part.filters),
        "unread": sorted(part.unread),
        "bad": part.bad,
        "reason": part.reason,
    }


def serve() -> None:
    """The loop of a worker process: a job per line on standard input, its outcome per line on standard output."""
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(orjson.dumps(run_job(orjson.loads(line))) + b"\n")
        sys.stdout.buffer.flush()


def _encoded(path: Path) -> str:
    """A path as text that JSON can hold, whatever its bytes are."""
    return os.fsencode(path).decode("latin-1")


def _decoded(path: str) -> Path:
    return Path(os.fsdecode(path.encode("latin-1")))


def _add(entry: Entry, outcome: dict[str, Any], part: str) -> None:
    if "rows" not in outcome:  # one bad range makes the file unusable
        entry.update(rows=0, reason=outcome["reason"], bad=0)
        entry.pop("parts", None)
        return
    if "parts" not in entry:
        return
    entry["rows"] += outcome["rows"]
    entry["bad"] += outcome["bad"]
    for name in ("numbers", "filters", "unread"):
        entry[name] = sorted({*entry[name], *outcome[name]})
    if outcome["reason"]:
        entry.setdefault("reason", outcome["reason"])
    if outcome["rows"]:
        entry["parts"].append(part)


def _run_workers(jobs: list[tuple[SampleFile, dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Share the jobs among `count` worker processes, largest first.

    Plain processes, not multiprocessing: a user's script that calls `collect` needs no `if __name__ == "__main__"`.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in sorted(range(len(jobs)), key=lambda i: -jobs[i][0].stamp[0]):
        pending.put(index)
    outcomes: list[dict[str, Any]] = [{"error": "a worker process ended early"} for _ in jobs]

    def feed() -> None:
        command = [sys.executable, "-c", _WORKER, str(Path(__file__).parents[2])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JRT_EVAL_AUTOLOAD": "0"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            while True:
                try:
                    index = pending.get_nowait()
                except queue.Empty:
                    break
                try:
                    worker.stdin.write(orjson.dumps(jobs[index][1]) + b"\n")
                    worker.stdin.flush()
                except BrokenPipeError:
                    break
                answer = worker.stdout.readline()
                if not answer:
                    break
                outcomes[index] = orjson.loads(answer)
            worker.stdin.close()

    threads = [threading.Thread(target=feed) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
