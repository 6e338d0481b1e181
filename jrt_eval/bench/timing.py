"""Medians of interleaved runs, so that a slow moment of the machine falls on every candidate alike."""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


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
    """How long one call of each candidate takes.

    Every round times each candidate once, in an order of its own (a GPU that a long product has heated runs slower), short ones
    several calls at a time; at most about `seconds` per candidate, and never fewer than `fewest` rounds.
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


class Matmul:
    """A square product of matrices: a candidate beside the operators, whose time gives this machine's rate."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048) -> None:
        self.a, self.b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def __call__(self) -> torch.Tensor:
        return self.a @ self.b

    @property
    def flops(self) -> int:
        """Of one call."""
        return 2 * len(self.a) ** 3


class Copy:
    """A copy of so many bytes: a candidate whose time gives the device's memory bandwidth."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.x = torch.zeros(size, device=device, dtype=torch.uint8)
        self.y = torch.empty_like(self.x)

    def __call__(self) -> torch.Tensor:
        return self.y.copy_(self.x)

    @property
    def bytes(self) -> int:
        """Read and written by one call."""
        return 2 * self.x.numel()


def keep_memory() -> bool:
    """Make glibc's allocator keep what is freed. Without it PyTorch's large temporaries are mapped and unmapped on every
    call, and its forms are up to 4 times slower: comparisons should be with the better setting. True where it took.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        return bool(libc.mallopt(threshold, 1 << 30)) and bool(libc.mallopt(trim, 1 << 30))
    except (OSError, AttributeError):
        return False
