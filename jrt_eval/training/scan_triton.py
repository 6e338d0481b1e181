"""The selective scan as Triton kernels: a program walks one row's tokens with the states of a few channels in registers.

The backward pass runs the recurrence again, writes every h_t once, and walks back over them; so the forward pass saves
its inputs only. Gradients of B and C are summed over groups of channels first, then over the groups.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 16  # per program


@triton.jit
def _forward(x, dt, a, b, c, y, h_all, length, channels, N: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    n = tl.arange(0, N)
    decay = tl.load(a + at[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
    h = tl.zeros([BLOCK, N], dtype=tl.float32)
    for t in range(length):
        place = (row * length + t) * channels + at
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        bt = tl.load(b + (row * length + t) * N + n)
        h = tl.exp(dtt[:, None] * decay) * h + (dtt * xt)[:, None] * bt[None, :]
        if KEEP:
            tl.store(h_all + place[:, None] * N + n[None, :], h, mask=inside[:, None])
        else:
            ct = tl.load(c + (row * length + t) * N + n)
            tl.store(y + place, tl.sum(h * ct[None, :], 1), mask=inside)


@triton.jit
def _backward(
    x, dt, a, b, c, h_all, dy, dx, ddt, da, db, dc, length, channels, groups, N: tl.constexpr, BLOCK: tl.constexpr
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    at = group * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    n = tl.arange(0, N)
    decay = tl.load(a + at[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
    g = tl.zeros([BLOCK, N], dtype=tl.float32)  # the gradient of h_t, from later tokens
    da_sum = tl.zeros([BLOCK, N], dtype=tl.float32)
    for back in range(length):
        t = length - 1 - back
        place = (row * length + t) * channels + at
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        dyt = tl.load(dy + place, mask=inside, other=0.0)
        bt = tl.load(b + (row * length + t) * N + n)
        ct = tl.load(c + (row * length + t) * N + n)
        ht = tl.load(h_all + place[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        earlier = inside[:, None] & (n[None, :] + t * N >= N)  # h before the first token is 0
        h0 = tl.load(h_all + (place - channels)[:, None] * N + n[None, :], mask=earlier, other=0.0)
        g += dyt[:, None] * ct[None, :]
        step = tl.exp(dtt[:, None] * decay)
        through = g * h0 * step  # the gradient of dt * A
        da_sum += through * dtt[:, None]
        gb = tl.sum(g * bt[None, :], 1)
        tl.store(dx + place, gb * dtt, mask=inside)
        tl.store(ddt + place, tl.sum(through * decay, 1) + gb * xt, mask=inside)
        part = ((row * groups + group) * length + t) * N + n
        tl.store(db + part, tl.sum(tl.where(inside[:, None], g * (dtt * xt)[:, None], 0.0), 0))
        tl.store(dc + part, tl.sum(ht * dyt[:, None], 0))
        g = g * step
    tl.store(da + (row * channels + at)[:, None] * N + n[None, :], da_sum, mask=inside[:, None])


class TritonScan(torch.autograd.Function):
    """y_t = C_t . h_t; all tensors float32 and on one CUDA device. The number of states must be a power of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        x, dt, a, b, c = (t.contiguous() for t in (x, dt, a, b, c))
        y = torch.empty_like(x)
        grid = (x.shape[0], triton.cdiv(x.shape[2], CHANNELS))
        _forward[grid](
            x, dt, a, b, c, y, y, x.shape[1], x.shape[2], N=a.shape[1], BLOCK=CHANNELS, KEEP=False, num_warps=1
        )
        ctx.save_for_backward(x, dt, a, b, c)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, dt, a, b, c = ctx.saved_tensors
        batch, length, channels = x.shape
        states = a.shape[1]
        groups = triton.cdiv(channels, CHANNELS)
        grid = (batch, groups)
        h = x.new_empty(batch, length, channels, states)
        _forward[grid](x, dt, a, b, c, x, h, length, channels, N=states, BLOCK=CHANNELS, KEEP=True, num_warps=1)
        dx, ddt = torch.empty_like(x), torch.empty_like(x)
        da = x.new_empty(batch, channels, states)
        db, dc = x.new_empty(batch, groups, length, states), x.new_empty(batch, groups, length, states)
        _backward[grid](
            x, dt, a, b, c, h, dy.contiguous(), dx, ddt, da, db, dc, length, channels, groups,
            N=states, BLOCK=CHANNELS, num_warps=1,
        )  # fmt: skip
        return dx, ddt, da.sum(0), db.sum(1), dc.sum(1)
