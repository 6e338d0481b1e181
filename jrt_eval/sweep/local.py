"""The local engine: jobs are processes on this machine, with GPUs assigned through CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jrt_eval.errors import UserError
from jrt_eval.sweep.job import LM_EVAL, JobRun
from jrt_eval.sweep.plan import Job
from jrt_eval.sweep.spec import Resources
from jrt_eval.sweep.store import Folder

_EPSILON = 1e-6  # three thirds of a GPU are one


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Does not initialise them."""
    import torch

    count = torch.cuda.device_count()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")][:count]


def total_memory() -> int:
    """Bytes of this machine's memory, or of the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
        return total if limit == "max" else min(total, int(limit))
    except (OSError, ValueError):
        return total


@dataclass(frozen=True)
class Grant:
    """The resources of a running job: shares of GPUs by index, CPUs, memory."""

    gpus: tuple[tuple[int, float], ...]
    cpus: float
    memory: int


class Pool:
    """The GPUs, CPUs and memory of this machine that are free."""

    def __init__(self, gpus: Sequence[str], cpus: float, memory: int) -> None:
        self.names = list(gpus)
        self.total = Resources(len(gpus), cpus, memory)
        self._gpus = [1.0] * len(gpus)
        self._cpus = cpus
        self._memory = memory

    def take(self, wanted: Resources) -> Grant | None:
        """Reserve resources for a job, or return None if it must wait. A fraction is taken from the fullest GPU that has it."""
        if wanted.cpus > self._cpus + _EPSILON or wanted.memory > self._memory:
            return None
        if wanted.gpus < 1:
            free = [(left, i) for i, left in enumerate(self._gpus) if left + _EPSILON >= wanted.gpus]
            if wanted.gpus and not free:
                return None
            shares = [(min(free)[1], wanted.gpus)] if wanted.gpus else []
        else:
            whole = [i for i, left in enumerate(self._gpus) if left > 1 - _EPSILON][: int(wanted.gpus)]
            if len(whole) < wanted.gpus:
                return None
            shares = [(i, 1.0) for i in whole]
        for i, share in shares:
            self._gpus[i] -= share
        self._cpus -= wanted.cpus
        self._memory -= wanted.memory
        return Grant(tuple(shares), wanted.cpus, wanted.memory)

    def give_back(self, grant: Grant) -> None:
        for i, share in grant.gpus:
            self._gpus[i] += share
        self._cpus += grant.cpus
        self._memory += grant.memory


class LocalEngine:
    """Runs as many jobs at a time as their declared resources allow."""

    def __init__(self, *, gpus: Sequence[str] | None = None, cpus: float | None = None) -> None:
        self._gpus = gpus
        self._cpus = cpus or os.cpu_count() or 1

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise `UserError` for a job that could never run on this machine."""
        if self._gpus is None:
            self._gpus = visible_gpus() if any(job.resources.gpus for job in jobs) else []
        memory = total_memory()
        for job in jobs:
            wanted = job.resources
            if wanted.gpus > len(self._gpus):
                found = f"{len(self._gpus) or 'no'} GPU(s)"
                raise UserError(
                    f"job {job.id} asks for {wanted.gpus:g} GPU(s), and this process sees {found}; "
                    "set 'resources: {gpus: 0}' (or --set resources.gpus=0) to run on the CPU"
                )
            if wanted.cpus > self._cpus:
                raise UserError(f"job {job.id} asks for {wanted.cpus:g} CPUs; there are {self._cpus:g} here")
            if wanted.memory > memory:
                raise UserError(
                    f"job {job.id} asks for {wanted.memory / 1e9:.0f} GB of memory; here are {memory / 1e9:.0f} GB"
                )

    def run(
        self,
        jobs: Sequence[Job],
        folder: Folder,
        tick: Callable[[], None],
        command: Sequence[str] = LM_EVAL,
    ) -> dict[str, str]:
        """Run the jobs, calling `tick` about five times a second. Returns job id -> error, for the jobs that could not be run."""
        assert self._gpus is not None, "check() comes first"
        pool = Pool(self._gpus, self._cpus, total_memory())
        # Jobs with several GPUs first: among smaller jobs they might never find enough free at once.
        waiting = sorted(jobs, key=lambda job: -job.resources.gpus)
        running: list[tuple[JobRun, Grant]] = []
        broken: dict[str, str] = {}
        try:
            while waiting or running:
                for job in list(waiting):
                    grant = pool.take(job.resources)
                    if grant is None:
                        continue
                    waiting.remove(job)
                    try:
                        folder.check_space()
                    except UserError as error:
                        pool.give_back(grant)
                        broken[job.id] = str(error)
                        continue
                    names = ",".join(pool.names[i] for i, _ in grant.gpus)
                    running.append((JobRun(folder, job, gpus=names, command=command), grant))
                for entry in list(running):
                    try:
                        ended = entry[0].poll()
                    except (OSError, UserError) as error:  # the folder can no longer be written
                        broken[entry[0].job.id] = str(error)
                        entry[0].abandon()
                        ended = True
                    if ended:
                        pool.give_back(entry[1])
                        running.remove(entry)
                tick()
                time.sleep(0.2 if running else 0)
        finally:
            for run, _ in running:
                run.kill()
        return broken
