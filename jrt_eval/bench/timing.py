"""Times calls in turn, so that other load on the machine affects all candidates alike, and reports medians."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

CPU = torch.device("cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    fastest: float
    slowest: float


def timings(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 7,
    fewest: int = 3,
    seconds: float = 2.0,
) -> dict[str, Timing]:
    """Seconds of one call of each candidate.

    Every round times each candidate once, in a random order (a GPU is slower after a long product has heated it). A short candidate is
    called several times in a row. Each candidate takes about `seconds` at most, but at least `fewest` rounds.
    """
    calls: dict[str, int] = {}
    for name, run in candidates.items():
        run()
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        once = max(time.perf_counter() - start, 1e-7)
        calls[name] = max(1, min(1000, int(0.02 / once), int(seconds / rounds / once)))
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    order, dice = list(candidates.items()), random.Random(0)
    for turn in range(max(fewest, rounds)):
        dice.shuffle(order)
        for name, run in order:
            if turn >= fewest and sum(taken[name]) * calls[name] > seconds:
                continue
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            synchronize(device)
            taken[name].append((time.perf_counter() - start) / calls[name])
    return {name: Timing(statistics.median(each), min(each), max(each)) for name, each in taken.items()}


def medians(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Median seconds of each candidate over `rounds` calls in turn, after one round that does not count.

    clock: `time.process_time` measures the processor time of this process, which other processes disturb less.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if turn > 0:
                taken[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


class Matmul:
    """A square matrix product: a candidate whose time gives the FLOP/s of this machine."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048) -> None:
        self.a, self.b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def __call__(self) -> torch.Tensor:
        return self.a @ self.b

    @property
    def flops(self) -> int:
        """Of one call."""
        return 2 * len(self.a) ** 3


class Copy:
    """A copy of `size` bytes: a candidate whose time gives the memory bandwidth of the device."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.x = torch.zeros(size, device=device, dtype=torch.uint8)
        self.y = torch.empty_like(self.x)

    def __call__(self) -> torch.Tensor:
        return self.y.copy_(self.x)

    @property
    def bytes(self) -> int:
        """Read and written by one call."""
        return 2 * self.x.numel()
