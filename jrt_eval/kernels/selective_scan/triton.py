"""The selective scan as Triton kernels: a program walks over tokens of a row with the states of some channels in registers.

A thread has all states of one channel, so that B and C are read once for 32 channels and C . h is a sum within the thread; a state
costs an exponential, a product and two multiply-adds per token, and nothing of size length x channels x states is written.

Where there are too few rows and channels to fill the GPU, a row is cut into segments that are walked at once. As A does not change
with time, a segment multiplies what comes in by exp(A sum(dt)): a first pass leaves each segment's last state, started from zero, and
its sum of dt, and in the second pass every program folds those of the segments before its own into its first state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import learns, plain
from jrt_eval.kernels.library import decode_step
from jrt_eval.kernels.selective_scan import reference, schema
from jrt_eval.kernels.triton_common import LOG2E, silu, time_step, token_count

FILL = 1024  # programs of one warp that keep a GPU busy
SHORTEST = 64  # tokens of a segment, at least


# `unit` is 1 and the compiler must not know it. Where it sees that the states of a channel are adjacent in memory, it spreads them over
# threads, and then every token needs exchanges between threads: 3 times through shared memory and 8 shuffles.
@triton.jit
def _decay_rates(a, at, inside, states, unit, N: tl.constexpr):
    """A (states, channels) in units of log2(e); 0 where there is no state."""
    n = tl.arange(0, N)
    keep = (n < states)[:, None] & inside[None, :]
    return tl.load(a + (at * states)[None, :] + (n * unit)[:, None], mask=keep, other=0.0) * LOG2E


@triton.jit(do_not_specialize=["unit"])
def _prefill_ends(
    x, dt, a, b, bias, lengths, ends, sums, length, channels, states, per_group, segments, segment_length, unit,
    x_row, x_token, dt_row, dt_token, b_row, b_token, b_group,
    N: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The last state of a segment that starts from zero (row, segment, N, channels), and its sum of dt."""
    row, segment, block = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.program_id(0)
    blocks = tl.cdiv(per_group, BLOCK)
    group = block // blocks
    inner = block % blocks * BLOCK + tl.arange(0, BLOCK)
    at, inside = group * per_group + inner, inner < per_group
    n = tl.arange(0, N)
    rates = _decay_rates(a, at, inside, states, unit, N)
    shift = tl.zeros([BLOCK], dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    count = token_count(lengths, row, length, LENGTHS)
    first = segment * segment_length
    h = tl.zeros([N, BLOCK], dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for t in range(first, tl.minimum(first + segment_length, count)):
        xt = tl.load(x + row * x_row + t * x_token + at, mask=inside, other=0.0).to(tl.float32)
        raw = tl.load(dt + row * dt_row + t * dt_token + at, mask=inside, other=0.0)
        bt = tl.load(b + row * b_row + t * b_token + group * b_group + n, mask=n < states, other=0.0).to(tl.float32)
        step = time_step(raw, shift, SOFTPLUS)
        h = tl.exp2(step[None, :] * rates) * h + (step * xt)[None, :] * bt[:, None]
        total += step
    to = row * segments + segment
    tl.store(ends + (to * N + n[:, None]) * channels + (at * unit)[None, :], h, mask=inside[None, :])
    tl.store(sums + to * channels + at, total, mask=inside)


@triton.jit(do_not_specialize=["unit"])
def _prefill(
    x, dt, a, b, c, d, z, bias, state_in, lengths, ends, sums, y, state_out,
    length, channels, states, per_group, segments, segment_length, unit,
    x_row, x_token, dt_row, dt_token, z_row, z_token, b_row, b_token, b_group, c_row, c_token, c_group,
    N: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr,
    LENGTHS: tl.constexpr, SOFTPLUS: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    row, segment, block = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.program_id(0)
    blocks = tl.cdiv(per_group, BLOCK)
    group = block // blocks
    inner = block % blocks * BLOCK + tl.arange(0, BLOCK)
    at, inside = group * per_group + inner, inner < per_group
    n = tl.arange(0, N)
    real = n < states
    rates = _decay_rates(a, at, inside, states, unit, N)
    shift = tl.zeros([BLOCK], dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    skip = tl.zeros([BLOCK], dtype=tl.float32)
    if D:
        skip = tl.load(d + at, mask=inside, other=0.0).to(tl.float32)
    h = tl.zeros([N, BLOCK], dtype=tl.float32)
    held = ((row * channels + at) * states)[None, :] + (n * unit)[:, None]
    both = real[:, None] & inside[None, :]
    if STATE:
        h = tl.load(state_in + held, mask=both, other=0.0)
    if SEGMENTS:
        for earlier in range(segment):
            of = row * segments + earlier
            end = tl.load(
                ends + (of * N + n[:, None]) * channels + (at * unit)[None, :], mask=inside[None, :], other=0.0
            )
            total = tl.load(sums + of * channels + at, mask=inside, other=0.0)
            h = tl.exp2(total[None, :] * rates) * h + end
    count = token_count(lengths, row, length, LENGTHS)
    first = segment * segment_length
    last = tl.minimum(first + segment_length, length)
    stop = tl.maximum(tl.minimum(last, count), first)
    x += row * x_row + at
    dt += row * dt_row + at
    z += row * z_row + at
    b += row * b_row + group * b_group + n
    c += row * c_row + group * c_group + n
    y += row * length * channels + at
    # A token's inputs are asked for while the one before it is computed.
    here = inside & (first < stop)
    x_next = tl.load(x + first * x_token, mask=here, other=0.0)
    dt_next = tl.load(dt + first * dt_token, mask=here, other=0.0)
    b_next = tl.load(b + first * b_token, mask=real & (first < stop), other=0.0)
    c_next = tl.load(c + first * c_token, mask=real & (first < stop), other=0.0)
    if GATE:
        z_next = tl.load(z + first * z_token, mask=here, other=0.0)
    for t in range(first, stop):
        xt, raw, bt, ct = x_next.to(tl.float32), dt_next, b_next.to(tl.float32), c_next.to(tl.float32)
        more = t + 1 < stop
        x_next = tl.load(x + (t + 1) * x_token, mask=inside & more, other=0.0)
        dt_next = tl.load(dt + (t + 1) * dt_token, mask=inside & more, other=0.0)
        b_next = tl.load(b + (t + 1) * b_token, mask=real & more, other=0.0)
        c_next = tl.load(c + (t + 1) * c_token, mask=real & more, other=0.0)
        step = time_step(raw, shift, SOFTPLUS)
        h = tl.exp2(step[None, :] * rates) * h + (step * xt)[None, :] * bt[:, None]
        out = tl.sum(h * ct[:, None], 0) + skip * xt
        if GATE:
            out *= silu(z_next)
            z_next = tl.load(z + (t + 1) * z_token, mask=inside & more, other=0.0)
        tl.store(y + t * channels, out, mask=inside)
    for t in range(stop, last):  # padding
        tl.store(y + t * channels, tl.zeros([BLOCK], dtype=tl.float32), mask=inside)
    final = (count <= first + segment_length) & ((count > first) | (segment == 0))
    tl.store(state_out + held, h, mask=both & final)


@triton.jit
def _step(
    x, dt, a, b, c, d, z, bias, state, y, channels, states, per_group,
    x_row, x_channel, dt_row, dt_channel, z_row, z_channel, b_row, b_group, b_state, c_row, c_group, c_state,
    N: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    group = (at // per_group)[:, None]
    n = tl.arange(0, N)[None, :]
    both = inside[:, None] & (n < states)
    held = (row * channels + at)[:, None] * states + n
    h = tl.load(state + held, mask=both, other=0.0).to(tl.float32)
    rates = tl.load(a + at[:, None] * states + n, mask=both, other=0.0) * LOG2E
    xt = tl.load(x + row * x_row + at * x_channel, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(dt + row * dt_row + at * dt_channel, mask=inside, other=0.0)
    shift = tl.zeros([BLOCK], dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    bt = tl.load(b + row * b_row + group * b_group + n * b_state, mask=both, other=0.0).to(tl.float32)
    ct = tl.load(c + row * c_row + group * c_group + n * c_state, mask=both, other=0.0).to(tl.float32)
    step = time_step(raw, shift, SOFTPLUS)
    h = tl.exp2(step[:, None] * rates) * h + (step * xt)[:, None] * bt
    tl.store(state + held, h, mask=both)
    out = tl.sum(h * ct, 1)
    if D:
        out += tl.load(d + at, mask=inside, other=0.0).to(tl.float32) * xt
    if GATE:
        out *= silu(tl.load(z + row * z_row + at * z_channel, mask=inside, other=0.0))
    tl.store(y + row * channels + at, out, mask=inside)


def _selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    a, d, dt_bias, state = a.contiguous().resolve_neg(), *map(plain, (d, dt_bias, state))
    batch, length, channels = x.shape
    states, groups = a.shape[1], b.shape[2]
    x, dt, b, c = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, dt, b, c))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    y = x.new_empty((batch, length, channels))
    final = x.new_empty((batch, channels, states), dtype=torch.float32)
    if batch == 0 or channels == 0:
        return y, final
    per_group = channels // groups
    n = triton.next_power_of_2(states)
    block = max(1, min(32, 2048 // n))
    blocks = groups * triton.cdiv(per_group, block)
    segment = segment_length(length, batch * blocks)
    segments = max(1, triton.cdiv(length, segment))
    grid = (blocks, batch, segments)
    ends, sums = x, x
    with torch.cuda.device_of(x):
        if segments > 1:
            ends = x.new_empty((batch, segments, n, channels), dtype=torch.float32)
            sums = x.new_empty((batch, segments, channels), dtype=torch.float32)
            _prefill_ends[grid](
                x, dt, a, b, dt_bias, lengths, ends, sums, length, channels, states, per_group, segments, segment, 1,
                *x.stride()[:2], *dt.stride()[:2], *b.stride()[:3],
                N=n, BLOCK=block, BIAS=dt_bias is not None, LENGTHS=lengths is not None, SOFTPLUS=softplus, num_warps=1,
            )  # fmt: skip
        _prefill[grid](
            x, dt, a, b, c, d, x if z is None else z, dt_bias, state, lengths, ends, sums, y, final,
            length, channels, states, per_group, segments, segment, 1,
            *x.stride()[:2], *dt.stride()[:2], *(x if z is None else z).stride()[:2], *b.stride()[:3], *c.stride()[:3],
            N=n, BLOCK=block, D=d is not None, GATE=z is not None, BIAS=dt_bias is not None, STATE=state is not None,
            LENGTHS=lengths is not None, SOFTPLUS=softplus, SEGMENTS=segments > 1, num_warps=1,
        )  # fmt: skip
    return y, final


def segment_length(length: int, programs: int) -> int:
    """Tokens of a segment: all of them where `programs` fill the GPU without a cut."""
    segments = max(1, min(triton.cdiv(FILL, programs), length // SHORTEST))
    return max(1, triton.cdiv(length, segments))


def _selective_scan_step(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    softplus: bool,
) -> Tensor:
    a, d, dt_bias = a.contiguous().resolve_neg(), *map(plain, (d, dt_bias))
    batch, channels = x.shape
    states = a.shape[1]
    y = x.new_empty((batch, channels))
    if y.numel() == 0:
        return y
    n = triton.next_power_of_2(states)
    block = max(1, min(64, 4096 // n))
    with torch.cuda.device_of(x):
        _step[(triton.cdiv(channels, block), batch)](
            x, dt, a, b, c, d, x if z is None else z, dt_bias, state, y, channels, states, channels // b.shape[1],
            *x.stride(), *dt.stride(), *(x if z is None else z).stride(), *b.stride(), *c.stride(),
            N=n, BLOCK=block, D=d is not None, GATE=z is not None, BIAS=dt_bias is not None, SOFTPLUS=softplus, num_warps=2,
        )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


schema.selective_scan.implement("CUDA", _selective_scan)
schema.selective_scan_step.implement("CUDA", _selective_scan_step)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    arguments = (x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus)
    if learns(x, dt, a, b, c, d, z, dt_bias, state):
        states, groups = a.shape[1], b.shape[2]
        simple = state is None and lengths is None and groups == 1
        if not simple or states & (states - 1) or states > 256 or x.numel() == 0 or torch.compiler.is_compiling():
            return reference.selective_scan(*arguments)
        from jrt_eval.kernels.selective_scan.triton_training import trainable

        return trainable(x, dt, a, b, c, d, z, dt_bias, softplus)
    y, final = (schema.selective_scan.call if torch.compiler.is_compiling() else _selective_scan)(*arguments)
    return y, final


selective_scan_step = decode_step(schema.selective_scan_step, _selective_scan_step, slice(8, 9))
