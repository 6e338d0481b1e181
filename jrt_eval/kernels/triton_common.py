"""Functions of the Triton kernels of several operators."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_count(lengths, row, length, LENGTHS: tl.constexpr):
    """How many tokens of a row count."""
    count = length
    if LENGTHS:
        count = tl.minimum(tl.maximum(tl.load(lengths + row).to(tl.int32), 0), length)
    return count


@triton.jit
def time_step(raw, bias, SOFTPLUS: tl.constexpr):
    """dt from what the model projects, float32."""
    x = raw.to(tl.float32) + bias
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        u = 1.0 + e
        # log(1 + e) to its relative precision: the rounding of 1 + e cancels (W. Kahan).
        tail = tl.where(u == 1.0, e, tl.log2(u) * e / (LOG2E * tl.where(u == 1.0, 1.0, u - 1.0)))
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + tail
    return x


@triton.jit
def silu(x):
    x = x.to(tl.float32)
    return x / (1.0 + tl.exp2(-x * LOG2E))
