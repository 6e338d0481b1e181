"""The selective scan and its gradient as Triton kernels, for training: a program walks over one segment of a row.

A row is cut into segments that are walked at once. As A does not change with time, a segment multiplies what comes in by
exp(A sum(dt)): so a first pass leaves each segment's last state, begun from zero, and its sum of dt, and in the second
pass every program folds those of the segments before its own into the state that it begins with. The gradient of the
states runs through the same two passes from the end. Saved are the inputs and the segments' ends; the backward pass runs
a segment's recurrence again, writes every h before its token once, and walks back over them. Gradients of B and C are
summed over groups of channels first, then over the groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from jrt_eval.kernels.selective_scan.reference import time_step

TILE = 512  # channels times states of a program of one warp


@triton.jit
def _ends(
    x, dt, a, v, ends, sums, length, channels, segments,
    N: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr, BACK: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """What a segment leaves if nothing comes in: its last h (x and v = B); or BACK, the gradient of the h before it (dy, C)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    n = tl.arange(0, N)
    decay = tl.load(a + at[None, :] * N + n[:, None], mask=inside[None, :], other=0.0)
    h = tl.zeros([N, BLOCK], dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    first = segment * SEGMENT
    count = tl.minimum(SEGMENT, length - first)
    for i in range(count):
        if BACK:
            t = first + count - 1 - i
        else:
            t = first + i
        place = (row * length + t) * channels + at
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        vt = tl.load(v + (row * length + t) * N + n)
        step = tl.exp(dtt[None, :] * decay)
        if BACK:
            h = (h + xt[None, :] * vt[:, None]) * step
        else:
            h = step * h + (dtt * xt)[None, :] * vt[:, None]
            total += dtt
    to = row * segments + segment
    tl.store(ends + (to * N + n[:, None]) * channels + at[None, :], h, mask=inside[None, :])
    if not BACK:
        tl.store(sums + to * channels + at, total, mask=inside)


@triton.jit
def _incoming(
    ends, sums, decay, row, first, count, move, segments, channels, at, inside, N: tl.constexpr, BLOCK: tl.constexpr
):  # type: ignore[no-untyped-def]
    """What comes in, folded from the `ends` of segments `first`, `first + move`, ..."""
    n = tl.arange(0, N)
    h = tl.zeros([N, BLOCK], dtype=tl.float32)
    for i in range(count):
        of = row * segments + first + i * move
        end = tl.load(ends + (of * N + n[:, None]) * channels + at[None, :], mask=inside[None, :], other=0.0)
        total = tl.load(sums + of * channels + at, mask=inside, other=0.0)
        h = tl.exp(total[None, :] * decay) * h + end
    return h


@triton.jit
def _forward(
    x, dt, a, b, c, ends, sums, y, final, length, channels, segments,
    N: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    n = tl.arange(0, N)
    decay = tl.load(a + at[None, :] * N + n[:, None], mask=inside[None, :], other=0.0)
    h = _incoming(ends, sums, decay, row, 0, segment, 1, segments, channels, at, inside, N, BLOCK)
    first = segment * SEGMENT
    for i in range(tl.minimum(SEGMENT, length - first)):
        t = first + i
        place = (row * length + t) * channels + at
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        bt = tl.load(b + (row * length + t) * N + n)
        ct = tl.load(c + (row * length + t) * N + n)
        h = tl.exp(dtt[None, :] * decay) * h + (dtt * xt)[None, :] * bt[:, None]
        tl.store(y + place, tl.sum(h * ct[:, None], 0), mask=inside)
    if segment == segments - 1:
        tl.store(final + (row * channels + at[None, :]) * N + n[:, None], h, mask=inside[None, :])


@triton.jit
def _backward(
    x, dt, a, b, c, ends, sums, back, h_all, dy, dx, ddt, da, db, dc, length, channels, segments, groups,
    N: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    row, segment, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    at = group * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    n = tl.arange(0, N)
    decay = tl.load(a + at[None, :] * N + n[:, None], mask=inside[None, :], other=0.0)
    first = segment * SEGMENT
    count = tl.minimum(SEGMENT, length - first)
    h = _incoming(ends, sums, decay, row, 0, segment, 1, segments, channels, at, inside, N, BLOCK)
    for i in range(count):
        t = first + i
        place = (row * length + t) * channels + at
        tl.store(h_all + ((row * length + t) * N + n[:, None]) * channels + at[None, :], h, mask=inside[None, :])
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        bt = tl.load(b + (row * length + t) * N + n)
        h = tl.exp(dtt[None, :] * decay) * h + (dtt * xt)[None, :] * bt[:, None]
    # g: the gradient of h_t, from later tokens.
    later = segments - 1 - segment
    g = _incoming(back, sums, decay, row, segments - 1, later, -1, segments, channels, at, inside, N, BLOCK)
    da_sum = tl.zeros([N, BLOCK], dtype=tl.float32)
    for i in range(count):
        t = first + count - 1 - i
        place = (row * length + t) * channels + at
        xt = tl.load(x + place, mask=inside, other=0.0)
        dtt = tl.load(dt + place, mask=inside, other=0.0)
        dyt = tl.load(dy + place, mask=inside, other=0.0)
        bt = tl.load(b + (row * length + t) * N + n)
        ct = tl.load(c + (row * length + t) * N + n)
        h0 = tl.load(
            h_all + ((row * length + t) * N + n[:, None]) * channels + at[None, :], mask=inside[None, :], other=0.0
        )
        drive = dtt * xt
        step = tl.exp(dtt[None, :] * decay)
        g += dyt[None, :] * ct[:, None]
        through = g * h0 * step  # the gradient of dt * A
        da_sum += through * dtt[None, :]
        gb = tl.sum(g * bt[:, None], 0)
        tl.store(dx + place, gb * dtt, mask=inside)
        tl.store(ddt + place, tl.sum(through * decay, 0) + gb * xt, mask=inside)
        part = ((row * groups + group) * length + t) * N + n
        tl.store(db + part, tl.sum(g * drive[None, :], 1))  # channels outside drive nothing, and their dy is 0
        tl.store(dc + part, tl.sum((step * h0 + drive[None, :] * bt[:, None]) * dyt[None, :], 1))
        g = g * step
    to = row * segments + segment
    tl.store(da + (to * N + n[:, None]) * channels + at[None, :], da_sum, mask=inside[None, :])


class TritonScan(torch.autograd.Function):
    """y_t = C_t . h_t and the final h, through which no gradient flows; all tensors float32 and on one CUDA device.

    The number of states must be a power of two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, a, b, c = (t.contiguous() for t in (x, dt, a, b, c))
        batch, length, channels = x.shape
        states = a.shape[1]
        segments, shape = _cut(length, states)
        grid = (batch, segments, triton.cdiv(channels, shape["BLOCK"]))
        y, final = torch.empty_like(x), x.new_empty(batch, channels, states)
        ends, sums = x.new_empty(batch, segments, states, channels), x.new_empty(batch, segments, channels)
        _ends[grid](x, dt, a, b, ends, sums, length, channels, segments, BACK=False, **shape)
        _forward[grid](x, dt, a, b, c, ends, sums, y, final, length, channels, segments, **shape)
        ctx.save_for_backward(x, dt, a, b, c, ends, sums)
        ctx.mark_non_differentiable(final)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, dt, a, b, c, ends, sums = ctx.saved_tensors
        dy = dy.contiguous()
        batch, length, channels = x.shape
        states = a.shape[1]
        segments, shape = _cut(length, states)
        groups = triton.cdiv(channels, shape["BLOCK"])
        grid = (batch, segments, groups)
        back = torch.empty_like(ends)
        _ends[grid](dy, dt, a, c, back, sums, length, channels, segments, BACK=True, **shape)
        h = x.new_empty(batch, length, states, channels)
        dx, ddt = torch.empty_like(x), torch.empty_like(x)
        da = torch.empty_like(ends)
        db, dc = x.new_empty(batch, groups, length, states), x.new_empty(batch, groups, length, states)
        _backward[grid](
            x, dt, a, b, c, ends, sums, back, h, dy, dx, ddt, da, db, dc, length, channels, segments, groups, **shape
        )
        return dx, ddt, da.sum((0, 1)).T, db.sum(1), dc.sum(1)


def _cut(length: int, states: int) -> tuple[int, dict[str, int]]:
    """Into how many segments a row is cut, and a program's shape."""
    segment = 32 if length <= 512 else 64
    return triton.cdiv(length, segment), {"N": states, "BLOCK": TILE // states, "SEGMENT": segment, "num_warps": 1}


def trainable(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The operator with gradients, in float32 and for one group; none flows through the final state."""
    step = time_step(dt, dt_bias, softplus, torch.float32)
    with torch.cuda.device_of(x):
        y, final = TritonScan.apply(x.float(), step, a.float(), b[:, :, 0].float(), c[:, :, 0].float())
    if d is not None:
        y = y + d.float() * x.float()
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(x.dtype), final
