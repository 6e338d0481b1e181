"""A sweep's folder, and how nothing in it is ever half there.

    sweep.yaml          the sweep file as it ran
    .plan.json          its jobs and units
    results/UNIT/       a finished unit: lm-eval's results and samples of that task, and .record.json
    jobs/JOB/           log.txt, .status.json, attempt-N.yaml, cache/ (answers so far), .out-N/ (while it runs)
    set_aside/          results that other settings or versions made, never deleted
    table.md            the final table
    .models/            random models, where the sweep file asks for them

Whatever `jrt-eval collect` should not read has a name that begins with a dot, or is no JSON. A unit is built beside its
place and renamed into it: it is there whole or not at all, whatever is killed and when.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.sweep.plan import Job, Unit

# lm-eval's results file: the parts that have an entry per task.
_PER_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")
SPARE = 64 << 20  # bytes that must stay free on the disk


class Folder:
    """A sweep's folder on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.results = self.path / "results"
        self.jobs = self.path / "jobs"
        self.plan = self.path / ".plan.json"

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """The record of a finished unit, or None; the fingerprint is not compared."""
        return read_json(self.results / unit.key / ".record.json")

    def done(self, unit: Unit, commit: str | None = None) -> bool:
        """Whether the unit is finished by these settings, versions and (where both are known) model commit."""
        record = self.record(unit)
        if record is None or record.get("fingerprint") != unit.fingerprint:
            return False
        return not (commit and record.get("commit") and record["commit"] != commit)

    def job(self, job: Job) -> Path:
        return self.jobs / job.id

    def set_aside(self, key: str, reason: str) -> None:
        """Move what stands under a unit's name out of the results; the old results file loses its name for readers."""
        place = self.path / "set_aside" / f"{key}.{time.strftime('%Y%m%dT%H%M%S')}.{os.getpid()}"
        place.parent.mkdir(exist_ok=True)
        (self.results / key).rename(place)
        for file in [*place.rglob("results_*.json"), *place.rglob("samples_*.jsonl")]:
            file.rename(file.with_name(file.name + ".old"))
        write(place / "why.txt", reason + "\n")

    def clean(self) -> None:
        """Remove what a killed sweep left half built."""
        for rest in self.results.glob(".new-*"):
            shutil.rmtree(rest, ignore_errors=True)
        for rest in self.jobs.glob("*/.out-*"):
            shutil.rmtree(rest, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone. A lock dies with its process, so kill -9 leaves none behind."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"{self.path} belongs to a running sweep ({holder}): wait for it, or give another folder with -o"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def locked(self) -> bool:
        """Whether a sweep is running on this folder."""
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def check_space(self, needed: int = 0) -> None:
        """Refuse to start where the disk is full."""
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < needed + SPARE:
            raise UserError(
                f"the disk under {self.path} is full: {free >> 20} MiB free, {(needed + SPARE) >> 20} MiB needed; "
                "make room, or give another folder with -o"
            )


def read_output(out: Path, unit: Unit) -> tuple[Path, list[Path], dict[str, Any]] | None:
    """lm-eval's results file, samples and parsed results, if `out` holds the unit whole; None otherwise."""
    for path in sorted(out.rglob("results_*.json"), reverse=True):
        parsed = read_json(path)
        if not parsed or unit.task not in parsed.get("results", {}) or unit.task not in parsed.get("configs", {}):
            continue
        samples = sorted(path.parent.glob(f"samples_{unit.task}_2*.jsonl"))
        effective = parsed.get("n-samples", {}).get(unit.task, {}).get("effective")
        lines = 0
        for file in samples:
            text = file.read_bytes()
            if not text.endswith(b"\n"):
                return None  # cut off in the middle of a line
            lines += text.count(b"\n")
        # A task with several filters logs a line per filter and document.
        if not samples or lines == 0 or (effective and lines % int(effective)):
            return None
        return path, samples, parsed
    return None


def record_unit(folder: Folder, job: Job, unit: Unit, out: Path, extra: dict[str, Any]) -> bool:
    """Put a finished unit of `out` into the results, atomically; False if `out` does not hold it whole."""
    found = read_output(out, unit)
    if found is None:
        return False
    path, samples, parsed = found
    building = folder.results / f".new-{unit.key}"
    shutil.rmtree(building, ignore_errors=True)
    inside = building / path.parent.relative_to(out)
    inside.mkdir(parents=True)
    alone = {
        **parsed,
        **{part: {unit.task: parsed[part][unit.task]} for part in _PER_TASK if unit.task in parsed.get(part, {})},
        "group_subtasks": {},
    }
    alone.pop("groups", None)
    write(inside / path.name, json.dumps(alone, indent=2, ensure_ascii=False))
    for file in samples:
        shutil.copyfile(file, inside / file.name)
    score = {key: value for key, value in parsed["results"][unit.task].items() if isinstance(value, (int, float))}
    record = {
        "model": unit.model,
        "task": unit.task,
        "setting": unit.setting,
        "fingerprint": unit.fingerprint,
        "job": job.id,
        "score": score,
        "finished": time.time(),
        **extra,
    }
    write(building / ".record.json", json.dumps(record, indent=2, default=str))
    sync(building)
    place = folder.results / unit.key
    if place.exists():
        folder.set_aside(unit.key, "replaced by a newer result")
    building.rename(place)
    sync(folder.results)
    return True


def write(path: Path, text: str) -> None:
    """Write a file so that it holds the old text or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none or only a part of one."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return parsed if isinstance(parsed, dict) else None


def sync(folder: Path) -> None:
    """Make a rename outlast a power cut; file systems that cannot are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        pass


def last_lines(log: Path, number: int = 12, since: int = 0) -> list[str]:
    """The last lines of a log from byte `since` on; a progress bar counts as its last state."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [re.split(r"\r", line.rstrip("\r"))[-1].rstrip() for line in text.split("\n")]
    return [line[:500] for line in lines if line][-number:]
