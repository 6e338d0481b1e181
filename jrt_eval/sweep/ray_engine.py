"""The Ray engine: Ray assigns the jobs to the GPUs of one machine or of several. Needs `jrt-eval[sweep]`.

The sweep's folder must be on a file system that all machines share. Ray sets CUDA_VISIBLE_DEVICES for a task, and the task runs the
job as the local engine does, so that the lm_eval process of a killed worker ends too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.files import write_text
from jrt_eval.sweep.job import LM_EVAL, JobRun, status_of
from jrt_eval.sweep.plan import Job
from jrt_eval.sweep.store import Folder

_RESUBMIT = 2  # times that a job is started again after its worker died


def run_job(folder: str, job: Job, command: Sequence[str], start_in: str) -> None:
    """The body of a Ray task: one job from beginning to end, in the folder `start_in` if this machine has it."""
    if Path(start_in).is_dir():
        os.chdir(start_in)
    if not (Path(folder) / ".plan.json").is_file():
        raise UserError(f"{folder} does not exist on {os.uname().nodename}: all machines must share the sweep's folder")
    run = JobRun(Folder(folder), job, gpus=None if job.resources.gpus else "", command=command)
    try:
        while not run.poll():
            time.sleep(0.2)
    finally:
        run.kill()


class RayEngine:
    """Submits every job to Ray with its declared GPUs, CPUs and memory."""

    def __init__(self, address: str | None = None) -> None:
        """`address`: a running cluster (`auto`, `host:port`, `ray://...`); None starts Ray on this machine."""
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'jrt-eval[sweep]', or use --engine local") from None
        self._ray = ray
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"

    def check(self, jobs: Sequence[Job]) -> None:
        """Start or reach Ray. Raises `UserError` for a job that no machine of the cluster could ever run."""
        ray = self._ray
        if not ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if self._address == "local":
                options["include_dashboard"] = False
            _reach(self._address)
            try:
                self._init(options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                line = " ".join(str(error).split())[:200]
                raise UserError(f"cannot reach Ray at {self._address!r}: {line}") from None
        nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
        for job in jobs:
            wanted = _request(job)
            named = {"GPU": wanted["num_gpus"], "CPU": wanted["num_cpus"], "memory": wanted.get("memory", 0)}
            if not any(all(node.get(key, 0) >= amount for key, amount in named.items()) for node in nodes):
                ray.shutdown()
                most = {key: max((node.get(key, 0) for node in nodes), default=0) for key in named}
                raise UserError(
                    f"no machine of the Ray cluster can run job {job.id}: it asks for {named['GPU']:g} GPU(s), "
                    f"{named['CPU']:g} CPUs and {named['memory'] / 1e9:.0f} GB; the largest have {most['GPU']:g}, "
                    f"{most['CPU']:g} and {most['memory'] / 1e9:.0f} GB (see 'resources' in the sweep file)"
                )

    def _init(self, options: dict[str, Any]) -> None:
        """Start or reach Ray from an empty folder.

        Ray puts the current folder first on its workers' sys.path, where a stranger's `ctypes.py` would be imported. The folder lives as
        long as this engine, since Ray's processes start in it.
        """
        before, on_terminate = os.getcwd(), signal.getsignal(signal.SIGTERM)
        self._empty_folder = tempfile.TemporaryDirectory(prefix="jrt-eval-ray-")
        os.chdir(self._empty_folder.name)
        try:
            self._ray.init(address=self._address, **options)
        finally:
            os.chdir(before)
            # Ray replaces this handler by one in C++, which prints the stacks of all threads before it ends the process.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)

    def run(
        self,
        jobs: Sequence[Job],
        folder: Folder,
        tick: Callable[[], None],
        command: Sequence[str] = LM_EVAL,
    ) -> dict[str, str]:
        """Run the jobs. Returns job id -> error, for the jobs that could not be run to their end."""
        ray = self._ray
        remote = ray.remote(run_job)
        pending: dict[Any, tuple[Job, int]] = {}
        broken: dict[str, str] = {}

        def submit(job: Job, times: int) -> None:
            task = remote.options(**_request(job), max_retries=0, name=job.id)
            pending[task.remote(str(folder.path), job, tuple(command), os.getcwd())] = (job, times)

        try:
            for job in sorted(jobs, key=lambda job: -job.resources.gpus):
                submit(job, 0)
            while pending:
                ended, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
                for reference in ended:
                    job, times = pending.pop(reference)
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayTaskError as error:  # run_job itself raised
                        broken[job.id] = str(error.cause)
                    except ray.exceptions.RayError as error:  # the worker or its machine is gone
                        if times < _RESUBMIT:
                            starved = isinstance(error, ray.exceptions.OutOfMemoryError)
                            submit(replace(job, batch_size=8 >> times) if starved else job, times + 1)
                            continue
                        broken[job.id] = f"the Ray worker died {times + 1} times: {type(error).__name__}"
                    if job.id in broken:
                        state = {**status_of(folder, job), "state": "failed", "error": broken[job.id]}
                        folder.job(job).mkdir(parents=True, exist_ok=True)
                        write_text(folder.job(job) / ".status.json", json.dumps(state, indent=2))
                tick()
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            ray.shutdown()
        return broken


def _reach(address: str) -> None:
    """Raise `UserError` if nobody answers at the address; Ray itself would try for more than six minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"cannot reach Ray at {address!r}: {error.strerror or error}") from None


def _request(job: Job) -> dict[str, Any]:
    wanted = job.resources
    request: dict[str, Any] = {"num_gpus": wanted.gpus, "num_cpus": wanted.cpus}
    return {**request, "memory": wanted.memory} if wanted.memory else request
