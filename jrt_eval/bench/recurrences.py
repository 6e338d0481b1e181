"""Times the recurrent operators of Mamba, Mamba-2, GLA and Gated DeltaNet: our kernels and PyTorch, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval import kernels
from jrt_eval.bench.kernels import MOST_SECONDS, OURS, CpuTiming
from jrt_eval.bench.timing import Timing, timings

PYTORCH = "PyTorch"  # the backend "parallel": a chunk at a time where the reference takes token by token
LENGTHS = [128, 512, 2048, 8192]
GRADIENTS = 2048  # the longest length whose gradients are timed
STEPS = ("x", "dt", "b", "c", "z", "q", "k", "v", "g", "beta", "gate")  # arguments with a token dimension

Inputs = dict[str, Any]


def _scan(batch: int, length: int, normal: Callable[..., Tensor]) -> Inputs:
    """Mamba 130M: 1,536 channels, 16 states."""
    channels, states = 1536, 16
    x, dt, z = (normal(batch, length, channels) for _ in range(3))
    a = -torch.arange(1.0, states + 1, device=x.device).repeat(channels, 1)
    b, c = (normal(batch, length, states) for _ in range(2))
    vectors = {"d": torch.ones(channels, device=x.device), "dt_bias": torch.full((channels,), -4.0, device=x.device)}
    return {"x": x, "dt": dt, "a": a, "b": b, "c": c, "z": z, "softplus": True, **vectors}


def _ssd(batch: int, length: int, normal: Callable[..., Tensor]) -> Inputs:
    """Mamba-2 130M: 24 heads of 64, 128 states."""
    heads = 24
    x, dt = normal(batch, length, heads, 64), normal(batch, length, heads)
    b, c = (normal(batch, length, 1, 128) for _ in range(2))
    a = -torch.linspace(1, 16, heads, device=x.device)
    vectors = {"d": torch.ones(heads, device=x.device), "dt_bias": torch.full((heads,), -4.0, device=x.device)}
    return {"x": x, "dt": dt, "a": a, "b": b, "c": c, "softplus": True, **vectors}


def _conv(batch: int, length: int, normal: Callable[..., Tensor]) -> Inputs:
    """Mamba's convolution of 1,536 channels over four tokens."""
    x = normal(batch, length, 1536)
    return {"x": x, "weight": normal(1536, 1, 4), "bias": normal(1536)}


def _linear(batch: int, length: int, normal: Callable[..., Tensor]) -> Inputs:
    """GLA 340M: four heads, keys of 128, values of 256, a decay per key channel."""
    q, k, g = (normal(batch, length, 4, 128) for _ in range(3))
    return {"q": q, "k": k, "v": normal(batch, length, 4, 256), "g": F.logsigmoid(g.float()) / 16}


def _delta(batch: int, length: int, normal: Callable[..., Tensor]) -> Inputs:
    """Gated DeltaNet 340M: four heads, keys of 256, values of 512."""
    q, k = (F.normalize(normal(batch, length, 4, 256), dim=-1) for _ in range(2))
    gate, beta = (normal(batch, length, 4) for _ in range(2))
    return {"q": q, "k": k, "v": normal(batch, length, 4, 512), "g": F.logsigmoid(gate.float()), "beta": beta.sigmoid()}


OPERATORS: dict[str, Callable[[int, int, Callable[..., Tensor]], Inputs]] = {
    "selective_scan": _scan,
    "ssd": _ssd,
    "short_conv": _conv,
    "gated_linear_attention": _linear,
    "gated_delta_rule": _delta,
}


def sizes(operator: str) -> str:
    """The sizes that are timed, in words."""
    return (OPERATORS[operator].__doc__ or "").strip().rstrip(".")


def inputs(operator: str, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Random arguments of `operator` by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return OPERATORS[operator](batch, length, normal)


def _rows(kind: str, taken: Mapping[str, Timing], batch: int, length: int) -> list[CpuTiming]:
    return [
        CpuTiming(
            kind, name, batch, length, "bfloat16" if "bfloat16" in name else "float32", time.median, time.fastest,
            time.slowest, None, None,
        )
        for name, time in taken.items()
    ]  # fmt: skip


def prefill(operator: str, batch: int, length: int, device: torch.device, with_pytorch: bool) -> list[CpuTiming]:
    run = getattr(kernels, operator)
    single, half = (inputs(operator, batch, length, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    runs: dict[str, Callable[[], object]] = {OURS: partial(run, **single), f"{OURS}, bfloat16": partial(run, **half)}
    if with_pytorch:
        runs[PYTORCH] = partial(run, **single, backend="parallel")
    with torch.no_grad():
        return _rows("prefill", timings(runs, device), batch, length)


def gradients(operator: str, batch: int, length: int, device: torch.device, with_pytorch: bool) -> list[CpuTiming]:
    """Forward and backward pass."""
    run = getattr(kernels, operator)

    def both(**options: str) -> Callable[[], object]:
        given = inputs(operator, batch, length, device, torch.float32)
        leaves = [value.requires_grad_() for name, value in given.items() if name in STEPS]
        return lambda: torch.autograd.grad(run(**given, **options)[0].sum(), leaves)

    runs = {OURS: both()} | ({PYTORCH: both(backend="parallel")} if with_pytorch else {})
    return _rows("gradients", timings(runs, device), batch, length)


def decode(operator: str, batch: int, device: torch.device) -> list[CpuTiming]:
    """A decode step, which updates its state in place."""
    given = inputs(operator, batch, 1, device, torch.float32)
    state = getattr(kernels, operator)(**given)[1]
    now = {name: value[:, 0] if name in STEPS else value for name, value in given.items()}
    step = getattr(kernels, f"{operator}_step")
    runs = {
        OURS: partial(step, **now, state=state.clone()),
        PYTORCH: partial(step, **now, state=state.clone(), backend="parallel"),
    }
    with torch.no_grad():
        return _rows("decode", timings(runs, device, rounds=15), batch, 1)


def measure(
    operator: str, lengths: list[int], batches: list[int], batch: int, device: torch.device
) -> Iterator[list[CpuTiming]]:
    """Yield the timings of prefill and gradients at every length, and of a decode step at every batch size.

    PyTorch is left out where, judging by the length before, a call would take more than `MOST_SECONDS`.
    """
    for kind in (prefill, gradients):
        before: tuple[int, float] | None = None
        slow = False
        for length in sorted(lengths):
            if kind is gradients and length > GRADIENTS:
                continue
            slow = slow or (before is not None and before[1] * length / before[0] > MOST_SECONDS)
            rows = kind(operator, batch, length, device, not slow)
            before = next(((length, row.seconds) for row in rows if row.name == PYTORCH), before)
            yield rows
    for size in batches:
        yield decode(operator, size, device)
