"""Times Taylor linear attention, its gradients and its decode step on a CPU: ours and the alternatives, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jrt_eval.bench import alternatives
from jrt_eval.bench.timing import Matmul, Timing, timings
from jrt_eval.kernels import TaylorState, num_features, taylor_linear_attention, taylor_linear_attention_step

OURS = "jrt-eval"
LENGTHS = [128, 512, 2048, 4096, 8192, 32768, 131072]
BATCHES = [1, 8]  # of decode steps
MATMUL = "matrix product"
CHUNK = 64
MOST_BYTES = 6 << 30  # alternatives that would need more are left out
MOST_SECONDS = 4.0  # alternatives that would take longer for one call, judging by the previous length, are left out


@dataclass(frozen=True)
class CpuTiming:
    """One measurement; seconds of one call."""

    operator: str  # prefill, gradients (forward and backward together) or decode
    name: str
    batch: int
    length: int
    dtype: str
    seconds: float  # the median
    fastest: float
    slowest: float
    matmul_flops: float | None  # FLOP/s of a float32 matrix product, timed in the same rounds
    matmul_fraction: float | None  # the operator's minimal FLOPs / seconds / that rate

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BatchShape:
    """The sizes that all measurements of a run share."""

    batch: int
    heads: int
    d: int  # feature dim
    f: int  # head dim
    device: torch.device


def minimal_flops(batch: int, heads: int, length: int, d: int, f: int) -> int:
    """Matrix-product FLOPs with symmetric features and chunks of 64: L [4 n F + 2 C (d + F)] per head."""
    return batch * heads * length * (4 * num_features(d) * f + 2 * CHUNK * (d + f))


def _inputs(shape: BatchShape, length: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(shape.batch, length, shape.heads, shape.d, generator=g).to(shape.device) for _ in range(2))
    return q, k, torch.randn(shape.batch, length, shape.heads, shape.f, generator=g).to(shape.device)


def _too_much(
    name: str, squares: bool, shape: BatchShape, length: int, before: Mapping[str, tuple[int, float]]
) -> bool:
    """Whether a call would need too much memory or, judging by the previous length, too much time."""
    # three length x length matrices may be alive, and one of features
    each = 4 * shape.batch * shape.heads * length
    if squares and each * (3 * length + 2 * (1 + shape.d + shape.d**2)) > MOST_BYTES:
        return True
    if name not in before:  # left out at a shorter length, unless this is the first
        return bool(before)
    earlier, seconds = before[name]
    return seconds * (length / earlier) ** (2 if squares or "softmax" in name else 1) > MOST_SECONDS


def _rows(
    operator: str, taken: Mapping[str, Timing], shape: BatchShape, length: int, matmul: Matmul | None, counted: bool
) -> list[CpuTiming]:
    rate = None if matmul is None else matmul.flops / taken[MATMUL].median
    flops = minimal_flops(shape.batch, shape.heads, length, shape.d, shape.f)
    rows = []
    for name, time in taken.items():
        if name == MATMUL:
            continue
        fraction = flops / time.median / rate if rate and counted and "softmax" not in name else None
        dtype = "bfloat16" if name.endswith("bfloat16") else "float32"
        rows.append(
            CpuTiming(
                operator,
                name,
                shape.batch,
                length,
                dtype,
                time.median,
                time.fastest,
                time.slowest,
                rate,
                fraction,
            )
        )
    return rows


def prefill(length: int, shape: BatchShape, matmul: Matmul, before: Mapping[str, tuple[int, float]]) -> list[CpuTiming]:
    """Every implementation at one length, ours in float32 and bfloat16. before: name -> the last length and its seconds."""
    q, k, v = _inputs(shape, length)
    q16, k16, v16 = q.bfloat16(), k.bfloat16(), v.bfloat16()
    runs: dict[str, Callable[[], object]] = {
        MATMUL: matmul,
        OURS: lambda: taylor_linear_attention(q, k, v),
        f"{OURS}, bfloat16": lambda: taylor_linear_attention(q16, k16, v16),
    }
    turned = tuple(x.transpose(1, 2).contiguous() for x in (q, k, v))
    for name, (run, squares) in alternatives.table().items():
        if not _too_much(name, squares, shape, length, before):
            runs[name] = lambda run=run: run(*turned)  # type: ignore[misc]
    with torch.no_grad():
        return _rows("prefill", timings(runs, shape.device), shape, length, matmul, True)


def gradients(length: int, shape: BatchShape, before: Mapping[str, tuple[int, float]]) -> list[CpuTiming]:
    """Forward and backward pass of every differentiable implementation at one length."""
    q, k, v = _inputs(shape, length)
    gy = torch.ones_like(v)
    turned = tuple(x.transpose(1, 2).contiguous() for x in (q, k, v))

    def both(run: Callable[..., Tensor], inputs: tuple[Tensor, ...], gy: Tensor) -> Callable[[], object]:
        leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
        return lambda: torch.autograd.grad(run(*leaves), leaves, gy, allow_unused=True)

    runs = {OURS: both(lambda q, k, v: taylor_linear_attention(q, k, v)[0], (q, k, v), gy)}
    for name, (run, squares) in alternatives.differentiable().items():
        if not _too_much(name, squares, shape, length, before):
            runs[name] = both(run, turned, gy.transpose(1, 2).contiguous())
    return _rows("gradients", timings(runs, shape.device), shape, length, None, False)


def decode(shape: BatchShape) -> list[CpuTiming]:
    """A decode step: ours, the reference's in-place PyTorch form, and the released form."""
    q, k, v = (x[:, 0] for x in _inputs(shape, 1))

    def fresh(n: int) -> tuple[Tensor, Tensor]:
        rows = (shape.batch, shape.heads, n)
        return torch.zeros(*rows, shape.f, device=shape.device), torch.ones(*rows, device=shape.device)

    ours, reference = (TaylorState(*fresh(num_features(shape.d))) for _ in range(2))
    released = fresh(1 + shape.d + shape.d**2)
    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: taylor_linear_attention_step(q, k, v, ours),
        "PyTorch, in place, symmetric": lambda: taylor_linear_attention_step(q, k, v, reference, backend="torch"),
        "PyTorch, as released": lambda: alternatives.naive_step(q, k, v, *released),
    }
    with torch.no_grad():
        return _rows("decode", timings(runs, shape.device, rounds=15), shape, 1, None, False)


def call_overhead(device: torch.device) -> float:
    """Seconds of a decode step with almost no arithmetic."""
    x = torch.ones(1, 1, 1, device=device)
    state = TaylorState(torch.zeros(1, 1, 3, 1, device=device), torch.ones(1, 1, 3, device=device))
    with torch.no_grad():
        return timings({"step": lambda: taylor_linear_attention_step(x, x, x, state)}, device, rounds=15)["step"].median


def measure(
    lengths: list[int], batches: list[int], *, batch: int, heads: int, d: int, f: int, device: torch.device
) -> Iterator[list[CpuTiming]]:
    """Yield the timings of prefill and gradients at every length, and of a decode step at every batch size."""
    shape = BatchShape(batch, heads, d, f, device)
    matmul = Matmul(device)
    before: dict[str, tuple[int, float]] = {}

    def keep(rows: list[CpuTiming]) -> list[CpuTiming]:
        before.update((row.name, (row.length, row.seconds)) for row in rows)
        return rows

    for length in sorted(lengths):
        yield keep(prefill(length, shape, matmul, before))
    before.clear()
    for length in sorted(lengths):
        if length <= 8192:  # autograd keeps every chunk of the PyTorch forms
            yield keep(gradients(length, shape, before))
    for b in batches:
        yield decode(replace(shape, batch=b))
