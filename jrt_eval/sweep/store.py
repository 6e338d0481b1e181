"""The folder of a sweep. A unit's results are in it complete or not at all, whenever a process is killed.

    sweep.yaml          the sweep file as it ran
    .plan.json          the jobs and their units
    results/UNIT/       a finished unit: lm-eval's results and samples of that task, and .record.json
    jobs/JOB/           log.txt, .status.json, attempt-N.yaml, cache/ (answers so far), .out-N/ (lm-eval's output while it runs)
    set_aside/          results of other settings or versions, never deleted
    table.md            the final table
    .models/            random models, where the sweep file asks for them

`jrt-eval collect` reads only results/: everything else has a name that begins with a dot or is not JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jrt_eval import files
from jrt_eval.errors import UserError
from jrt_eval.sweep.plan import Job, Unit

# The parts of lm-eval's results file that have one entry per task.
_PER_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")
SPARE = 64 << 20  # bytes that must stay free on the disk
_LOG_TAIL = 65536  # bytes


class Folder:
    """A sweep's folder on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.results = self.path / "results"
        self.jobs = self.path / "jobs"
        self.plan = self.path / ".plan.json"

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """The record of a finished unit, whatever its fingerprint; None if there is none."""
        return read_json(self.results / unit.key / ".record.json")

    def done(self, unit: Unit, commit: str | None = None, *, thorough: bool = False) -> bool:
        """Whether the unit is finished with these settings and versions, and all its files are there.

        commit: the model's commit; a unit with another one is not done, where both are known.
        thorough: compare the contents of the files with the recorded digests, and not only their sizes.
        """
        record = self.record(unit)
        if record is None or record.get("fingerprint") != unit.fingerprint:
            return False
        if commit and record.get("commit") and record["commit"] != commit:
            return False
        return _intact(self.results / unit.key, record.get("files"), thorough)

    def job(self, job: Job) -> Path:
        return self.jobs / job.id

    def set_aside(self, key: str, reason: str) -> None:
        """Move a unit's folder out of the results. Its files get a suffix, so that no reader takes them for results."""
        place = self.path / "set_aside" / f"{key}.{time.strftime('%Y%m%dT%H%M%S')}.{os.getpid()}"
        place.parent.mkdir(exist_ok=True)
        (self.results / key).rename(place)
        for file in [*place.rglob("results_*.json"), *place.rglob("samples_*.jsonl")]:
            file.rename(file.with_name(file.name + ".old"))
        files.write_text(place / "why.txt", reason + "\n")

    def clean(self) -> None:
        """Remove what killed processes left unfinished; the caller holds the lock."""
        files.remove_unfinished(self.results)
        for rest in self.jobs.glob("*/.out-*"):
            shutil.rmtree(rest, ignore_errors=True)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other sweeps out of the folder. The lock is released when the process ends, also by `kill -9`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {files.reason(error)}") from None
        busy = f"{self.path} belongs to a running sweep ({{holder}}): wait for it, or give another folder with -o"
        return files.lock(self.path / ".lock", busy)

    def locked(self) -> bool:
        """Whether a sweep is running in this folder."""
        return files.is_locked(self.path / ".lock")

    def check_space(self, needed: int = 0) -> None:
        """Raise `UserError` if the disk has less than `needed` bytes and a reserve free."""
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < needed + SPARE:
            raise UserError(
                f"the disk under {self.path} is full: {free >> 20} MiB free, {(needed + SPARE) >> 20} MiB needed; "
                "make room, or give another folder with -o"
            )


def _intact(folder: Path, recorded: Any, thorough: bool) -> bool:
    """Whether the files of a record are in `folder`, with the same size and, if `thorough`, the same contents."""
    if not isinstance(recorded, dict) or not recorded:
        return False
    for name, (size, digest) in recorded.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or (thorough and _digest(path) != digest):
            return False
    return True


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_output(out: Path, task: str) -> tuple[Path, Path, dict[str, Any]] | None:
    """lm-eval's results file, its samples file and the parsed results, if `out` has all of the task; otherwise None."""
    for path in sorted(out.rglob("results_*.json"), reverse=True):
        parsed = read_json(path)
        if parsed is None or not all(isinstance(_entry(parsed, part, task), dict) for part in ("results", "configs")):
            continue
        # By the exact name: another task's name may begin like this one's.
        samples = path.with_name(f"samples_{task}_{path.stem.removeprefix('results_')}.jsonl")
        counts = _entry(parsed, "n-samples", task)
        documents = counts.get("effective") if isinstance(counts, dict) else None
        return (path, samples, parsed) if _complete(samples, documents) else None
    return None


def _entry(parsed: dict[str, Any], part: str, task: str) -> Any:
    """A task's entry in a part of a results file, or None."""
    entries = parsed.get(part)
    return entries.get(task) if isinstance(entries, dict) else None


def _complete(samples: Path, documents: Any) -> bool:
    """Whether a samples file has whole lines only, and as many for each document (a line per filter)."""
    lines = 0
    try:
        with open(samples, "rb") as file:
            for line in file:
                if not (line.startswith(b"{") and line.endswith(b"}\n")):
                    return False
                lines += 1
    except OSError:
        return False
    return lines > 0 and not (isinstance(documents, int) and documents > 0 and lines % documents)


def record_unit(folder: Folder, job: Job, unit: Unit, out: Path, extra: dict[str, Any]) -> bool:
    """Move a finished unit from lm-eval's output to the results, atomically; False if the output is not complete."""
    found = read_output(out, unit.task)
    if found is None:
        return False
    path, samples, parsed = found
    place = folder.results / unit.key
    if place.exists():
        folder.set_aside(unit.key, "replaced by a newer result")
    try:
        with files.new_folder(place) as building:
            # lm-eval names a folder after the model; a leading dot would hide it from readers.
            inside = building / (path.parent.name.lstrip(".") if path.parent != out else "")
            inside.mkdir(exist_ok=True)
            alone = json.dumps(_only_task(parsed, unit.task), indent=2, ensure_ascii=False)
            (inside / path.name).write_text(alone, encoding="utf-8", errors="surrogatepass")
            shutil.copyfile(samples, inside / samples.name)
            written = (inside / path.name, inside / samples.name)
            record = {
                "model": unit.model,
                "task": unit.task,
                "setting": unit.setting,
                "fingerprint": unit.fingerprint,
                "job": job.id,
                "score": _numbers(parsed["results"][unit.task]),
                "finished": time.time(),
                "files": {str(f.relative_to(building)): [f.stat().st_size, _digest(f)] for f in written},
                **extra,
            }
            (building / ".record.json").write_text(json.dumps(record, indent=2, default=str), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {place}: {files.reason(error)}") from error
    return True


def _only_task(parsed: dict[str, Any], task: str) -> dict[str, Any]:
    """The contents of a results file, with one task only."""
    entries = {part: _entry(parsed, part, task) for part in _PER_TASK}
    alone = {**parsed, **{part: {task: entry} for part, entry in entries.items() if entry is not None}}
    alone["group_subtasks"] = {}
    alone.pop("groups", None)
    return alone


def _numbers(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if isinstance(value, (int, float))}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is none or it is damaged."""
    try:
        parsed = json.loads(files.read_text(path))
    except (UserError, ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def last_lines(log: Path, number: int = 12, since: int = 0) -> list[str]:
    """The last lines of a log from byte `since` on. Of a progress bar, only its last state."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - _LOG_TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [re.split(r"\r", line.rstrip("\r"))[-1].rstrip() for line in text.split("\n")]
    return [printable(line[:500]) for line in lines if line][-number:]


def printable(text: str) -> str:
    """`text` without control characters, whose escape sequences could change the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
