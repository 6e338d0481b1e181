"""Taylor linear attention and its decode step: ours beside the alternatives, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from jrt_eval.bench import alternatives
from jrt_eval.bench.timing import matmul_rate, medians
from jrt_eval.kernels import TaylorState, num_features, taylor_linear_attention, taylor_step

OURS = "jrt-eval"
CHUNK = 64
MOST_BYTES = 6 << 30  # an alternative that would need more is left out


@dataclass(frozen=True)
class Row:
    """One measurement."""

    operator: str  # prefill or decode
    name: str
    batch: int
    length: int
    dtype: str
    seconds: float
    matmul_fraction: float | None  # minimal FLOPs / seconds / the measured float32 matrix-product rate

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def minimal_flops(batch: int, heads: int, length: int, d: int, f: int) -> int:
    """Matrix-product FLOPs with symmetric features and chunks of 64: L [4 n F + 2 C (d + F)] per head."""
    return batch * heads * length * (4 * num_features(d) * f + 2 * CHUNK * (d + f))


def prefill(
    length: int, *, batch: int, heads: int, d: int, f: int, device: torch.device, rate: float, others: bool = True
) -> list[Row]:
    """Every form at one length; ours in float32 and bfloat16."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, length, heads, d, generator=g).to(device) for _ in range(2))
    v = torch.randn(batch, length, heads, f, generator=g).to(device)
    q16, k16, v16 = q.bfloat16(), k.bfloat16(), v.bfloat16()
    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: taylor_linear_attention(q, k, v),
        f"{OURS}, bfloat16": lambda: taylor_linear_attention(q16, k16, v16),
    }
    turned = tuple(x.transpose(1, 2).contiguous() for x in (q, k, v))
    if others:
        for name, (run, squares) in alternatives.table().items():
            # three such matrices may be alive, and one of features
            need = 4 * batch * heads * length * (3 * length + 2 * (1 + d + d * d)) if squares else 0
            if need <= MOST_BYTES:
                runs[name] = lambda run=run: run(*turned)  # type: ignore[misc]
    taken = medians(runs, device)
    flops = minimal_flops(batch, heads, length, d, f)
    return [
        Row(
            "prefill",
            name,
            batch,
            length,
            "bfloat16" if name.endswith("bfloat16") else "float32",
            seconds,
            None if "softmax" in name else flops / seconds / rate,
        )
        for name, seconds in taken.items()
    ]


def decode(batch: int, *, heads: int, d: int, f: int, device: torch.device) -> list[Row]:
    """One token per row: ours, the reference's in-place PyTorch form, and the released form."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, heads, d, generator=g).to(device) for _ in range(2))
    v = torch.randn(batch, heads, f, generator=g).to(device)

    def fresh(n: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, heads, n, f, device=device), torch.ones(batch, heads, n, device=device)

    ours, reference, released = (
        TaylorState(*fresh(num_features(d))),
        TaylorState(*fresh(num_features(d))),
        fresh(1 + d + d * d),
    )
    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: taylor_step(q, k, v, ours),
        "PyTorch, in place, symmetric": lambda: taylor_step(q, k, v, reference, backend="torch"),
        "PyTorch, as released": lambda: alternatives.naive_step(q, k, v, *released),
    }
    with torch.no_grad():
        taken = medians(runs, device, rounds=15)
    return [Row("decode", name, batch, 1, "float32", seconds, None) for name, seconds in taken.items()]


def call_overhead(device: torch.device) -> float:
    """Seconds of a decode step that computes next to nothing."""
    x = torch.ones(1, 1, 1, device=device)
    state = TaylorState(torch.zeros(1, 1, 3, 1, device=device), torch.ones(1, 1, 3, device=device))
    with torch.no_grad():
        return medians({"step": lambda: taylor_step(x, x, x, state)}, device, rounds=15)["step"]


def measure(
    lengths: list[int], batches: list[int], *, batch: int, heads: int, d: int, f: int, device: torch.device
) -> tuple[float, list[Row]]:
    """The float32 matrix-product rate of this run, and all rows."""
    rate = matmul_rate(device)
    rows = [
        row
        for length in lengths
        for row in prefill(length, batch=batch, heads=heads, d=d, f=f, device=device, rate=rate)
    ]
    rows += [row for b in batches for row in decode(b, heads=heads, d=d, f=f, device=device)]
    return rate, rows
