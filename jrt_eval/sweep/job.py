"""One job, from its first attempt to its last, the same under every engine. The engine calls `poll` again and again.

When an attempt ends:

- A unit whose results and samples are complete is recorded, whatever the exit status.
- After running out of memory (a message of torch in the log, or signal 9), the missing units run again with a smaller batch.
- After any other crash with several units missing, each runs alone, so that one broken task costs only itself.
- After the time limit, or the crash of a unit that ran alone, the missing units have failed.

lm-eval writes results only at its end, and runs the prompts of all its tasks together, sorted by length. So that a killed process
loses only the batch it was computing, every attempt answers through lm-eval's own `use_cache` in the job's folder, and the next attempt
asks the model only for what is not in it. The cache is deleted when the job is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jrt_eval.files import write_text
from jrt_eval.processes import child_environment, python_module
from jrt_eval.sweep.plan import Job, Unit, installed_versions, model_commit
from jrt_eval.sweep.store import Folder, last_lines, read_json, record_unit

LM_EVAL = tuple(python_module("lm_eval", "run"))
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|can't allocate memory"
    r"|Cannot allocate memory|\bMemoryError\b",
    re.IGNORECASE,
)
_BAD_CACHE = re.compile(r"sqlite3?\.\w*Error.*(malformed|not a database|disk image)|file is not a database")
_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded")
_FIRST_FIXED_BATCH = 16  # the batch size after `auto` ran out of memory
MARK = "JRT_EVAL_SWEEP_JOB"  # a variable in the environment of every process of a job, by which a later sweep finds it


class JobRun:
    """A job in progress. Call `poll()` until it returns True; `kill()` ends it at once."""

    def __init__(self, folder: Folder, job: Job, *, gpus: str | None = None, command: Sequence[str] = LM_EVAL) -> None:
        """gpus: CUDA_VISIBLE_DEVICES of the job; None keeps that of the environment."""
        self.job = job
        self._folder = folder
        self._gpus = gpus
        self._command = tuple(command)
        self._home = folder.job(job)
        self._log = self._home / "log.txt"
        self._missing = [unit for unit in job.units if not folder.done(unit, job.commit)]
        self._errors: dict[str, str] = {}
        self._rounds: deque[tuple[list[Unit], int | str]] = deque([(list(self._missing), job.batch_size)])
        self._first_error: str | None = None
        self._tail: list[str] = []  # of the attempt that failed first
        self._log_start = 0
        self._attempt = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._status: dict[str, Any] = {"job": job.id, "host": socket.gethostname(), "started": time.time()}

    def poll(self) -> bool:
        """Advance the job without waiting. Returns True when it has ended."""
        while True:
            if self._child is None:
                if not self._rounds:
                    return True
                self._start()
            assert self._child is not None
            if self._child.poll() is None:
                if time.monotonic() - self._began > self.job.time_limit:
                    self._end_child()
                    self._out_of_time()
                    continue
                return False
            self._after()

    def kill(self, reason: str = "stopped") -> None:
        """End the job's processes and set its status to stopped."""
        if self._child is not None:
            self.abandon()
            self._save("stopped", error=reason)
        self._rounds.clear()

    def abandon(self) -> None:
        """End the job's processes and write nothing: for a folder that has become read-only or full."""
        self._rounds.clear()
        if self._child is not None:
            self._end_child()
            self._child = None

    def _start(self) -> None:
        units, batch = self._rounds[0]
        if self._attempt == 0:
            self._home.mkdir(parents=True, exist_ok=True)
            end_orphans(self._folder.path, self.job.id)
            self._log.unlink(missing_ok=True)
        self._attempt += 1
        self._out = self._home / f".out-{self._attempt}"
        shutil.rmtree(self._out, ignore_errors=True)
        config = self._home / f"attempt-{self._attempt}.yaml"
        settings = {
            **self.job.config,
            "tasks": [unit.task for unit in units],
            "batch_size": batch,
            "output_path": str(self._out),
            "log_samples": True,
            "use_cache": str(self._home / "cache" / "answers"),
        }
        write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        with open(self._log, "ab") as log:
            log.write(f"\n--- attempt {self._attempt}: {len(units)} tasks, batch size {batch}\n".encode())
            log.flush()
            self._log_start = log.tell()
            launch = python_module("jrt_eval.sweep.launch", str(os.getpid()))
            # A new session, so that the whole tree of processes can be ended, and the GPU with it.
            self._child = subprocess.Popen(
                [*launch, *self._command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._save("running", pid=self._child.pid, attempt=self._attempt, batch_size=batch, attempt_started=time.time())

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, int(self.job.resources.cpus)))
        env = {
            "OMP_NUM_THREADS": threads,  # jobs share the machine
            "TQDM_MININTERVAL": "2",  # the progress bar goes to a log file
            "PYTHONUNBUFFERED": "1",
            **child_environment(),
            MARK: f"{self._folder.path}:{self.job.id}",
        }
        if self._gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = self._gpus
        return env

    def _after(self) -> None:
        """The attempt has ended by itself: record the finished units, and decide about the rest."""
        assert self._child is not None
        status = self._child.returncode
        self._end_child()  # and any process that it left behind
        self._child = None
        units, batch = self._rounds.popleft()
        missing = [unit for unit in units if not self._record(unit, batch)]
        shutil.rmtree(self._out, ignore_errors=True)
        if not missing:
            if not self._rounds:
                self._finish()
            return
        tail = last_lines(self._log, 200, self._log_start)
        text = "\n".join(tail)
        error = _error_line(tail, status)
        if status == 0:
            self._fail(
                missing,
                error
                if _NO_ROOM.search(text)
                else f"lm_eval exited with status 0 but left no complete results: {error}",
            )
        elif status in (-signal.SIGKILL, 137) or _OUT_OF_MEMORY.search(text):
            smaller = _smaller(batch)
            if smaller is None:
                self._fail(missing, f"out of memory even with batch size 1: {error}")
            else:
                self._rounds.appendleft((missing, smaller))
        elif _BAD_CACHE.search(text) and (self._home / "cache").exists():
            shutil.rmtree(self._home / "cache")
            self._rounds.appendleft((missing, batch))
        elif _NO_ROOM.search(text):
            self._fail(missing, error)
        elif len(units) > 1:
            self._first_error = error
            self._rounds.extend(([unit], batch) for unit in missing)
        else:
            self._fail(missing, error)
            # The same error from all tasks together and from two alone: the model is at fault, not a task.
            if error == self._first_error and list(self._errors.values()).count(error) == 2:
                self._fail([unit for units, _ in self._rounds for unit in units], error)
                self._rounds.clear()
        if not self._rounds:
            self._finish()

    def _out_of_time(self) -> None:
        self._child = None
        waiting = [unit for units, _ in self._rounds for unit in units]
        self._rounds.clear()
        missing = [unit for unit in waiting if not self._record(unit, self.job.batch_size)]
        shutil.rmtree(self._out, ignore_errors=True)
        self._fail(
            missing, f"reached its time limit of {self.job.time_limit:g} s; its answers are kept for the next run"
        )
        self._finish()

    def _record(self, unit: Unit, batch: int | str) -> bool:
        extra = {
            "versions": installed_versions(),
            "commit": model_commit(self.job.config.get("model_args", {})),
            "batch_size": batch,
            "attempts": self._attempt,
            "host": socket.gethostname(),
            "seconds": round(time.monotonic() - self._began, 1),
        }
        return record_unit(self._folder, self.job, unit, self._out, extra)

    def _fail(self, units: list[Unit], error: str) -> None:
        self._tail = self._tail or last_lines(self._log, since=self._log_start)
        for unit in units:
            self._errors[unit.task] = error

    def _finish(self) -> None:
        if self._errors:
            error = next(iter(self._errors.values()))
            self._save("failed", errors=self._errors, tail=self._tail, error=error)
        else:
            shutil.rmtree(self._home / "cache", ignore_errors=True)
            self._save("done")

    def _end_child(self) -> None:
        """Kill the child and all its descendants, and wait until it is gone."""
        assert self._child is not None
        end_group(self._child.pid)
        self._child.wait()

    def _save(self, state: str, **more: Any) -> None:
        self._status |= {"state": state, "updated": time.time(), **more}
        write_text(self._home / ".status.json", json.dumps(self._status, indent=2))


def end_group(group: int) -> None:
    """Send SIGKILL to a process group, if it exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def end_orphans(folder: Path, job: str | None = None) -> int:
    """End the processes that a killed sweep left on this machine, of one job or of all. Returns their number."""
    mark = f"{MARK}={folder}:{job or ''}".encode()
    ended = 0
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(v == mark if job else v.startswith(mark) for v in variables):
            pid = int(environ.parent.name)
            if pid != os.getpid():
                try:
                    os.kill(pid, signal.SIGKILL)
                    ended += 1
                except OSError:
                    pass
    return ended


def status_of(folder: Folder, job: Job) -> dict[str, Any]:
    """The status that the job last wrote."""
    return read_json(folder.job(job) / ".status.json") or {"state": "waiting"}


def _smaller(batch: int | str) -> int | None:
    if isinstance(batch, str) and batch.startswith("auto"):
        return _FIRST_FIXED_BATCH
    return int(batch) // 2 or None


def _error_line(tail: list[str], status: int) -> str:
    """The last exception in the log, or its last line."""
    what = f"signal {-status}" if status < 0 else f"exit status {status}"
    for line in reversed(tail):
        if re.match(r"(jrt-eval: error: |([A-Za-z_][\w.]*\.)?[A-Z]\w*(Error|Exception|Interrupt)\b)", line):
            return f"{line.strip()} ({what})"
    return f"{tail[-1].strip() if tail else 'no output'} ({what})"
