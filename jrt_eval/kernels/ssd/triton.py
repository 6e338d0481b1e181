"""The recurrence of Mamba-2 as Triton kernels: a program has the state of one head in registers and walks over chunks of its row.

Within a chunk everything is a product of matrices (see `reference`): the scores C B^T, their weighted sum of inputs, C times the state,
and the update of the state. Two small kernels come first, so that a step of the walk waits for little: one writes the time steps and
the sums of decays within each chunk, the other the scores, which all heads of a group share. Beyond these, which have heads and chunk
numbers per token, nothing but the output and the final state is written.

The walk computes y^T and keeps h^T as (dim, states): the state and the scaled inputs are then left operands, which tensor cores read
from registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import learns, plain
from jrt_eval.kernels.library import decode_step
from jrt_eval.kernels.ssd import reference, schema
from jrt_eval.kernels.triton_common import LOG2E, silu, time_step, token_count

# Tokens of a chunk, warps of a program, and how many chunks ahead inputs are asked for.
CHUNK, WARPS, STAGES = 32, 4, 3


@triton.jit
def _time_steps(
    dt, a, bias, lengths, steps, decays, length, heads, dt_min, dt_max, dt_row, dt_token, dt_head,
    T: tl.constexpr, H: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """A chunk's time steps and the sums, from its first token on, of dt A log2(e): (row, chunk, head, token)."""
    chunk, row, block = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head, i = block * H + tl.arange(0, H), tl.arange(0, T)
    real, t = head < heads, chunk * T + i
    on = (t < token_count(lengths, row, length, LENGTHS))[None, :] & real[:, None]
    shift = tl.zeros([H], dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + head, mask=real, other=0.0).to(tl.float32)
    raw = tl.load(dt + row * dt_row + t[None, :] * dt_token + head[:, None] * dt_head, mask=on, other=0.0)
    step = time_step(raw, shift[:, None], SOFTPLUS)
    step = tl.minimum(
        tl.maximum(step, dt_min, propagate_nan=tl.PropagateNan.ALL), dt_max, propagate_nan=tl.PropagateNan.ALL
    )
    step = tl.where(on, step, 0.0)
    rate = tl.load(a + head, mask=real, other=0.0).to(tl.float32) * LOG2E
    to = ((row * tl.num_programs(0) + chunk) * heads + head)[:, None] * T + i[None, :]
    tl.store(steps + to, step, mask=real[:, None])
    tl.store(decays + to, tl.cumsum(step * rate[:, None], 1), mask=real[:, None])


@triton.jit
def _scores(
    b, c, lengths, scores, length, groups, states, b_row, b_token, b_group, c_row, c_token, c_group,
    T: tl.constexpr, N: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """B C^T of a chunk, float32: (row, chunk, group, source, target)."""
    chunk, row, group = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i, n = tl.arange(0, T), tl.arange(0, N)
    t = chunk * T + i
    on = (t < token_count(lengths, row, length, LENGTHS))[:, None] & (n < states)[None, :]
    bc = tl.load(b + row * b_row + group * b_group + t[:, None] * b_token + n[None, :], mask=on, other=0.0)
    cc = tl.load(c + row * c_row + group * c_group + t[:, None] * c_token + n[None, :], mask=on, other=0.0)
    to = ((row * tl.num_programs(0) + chunk) * groups + group) * T * T
    tl.store(scores + to + i[:, None] * T + i[None, :], tl.dot(bc, tl.trans(cc), input_precision=PRECISION))


@triton.jit
def _prefill(
    x, b, c, d, z, scores, steps, decays, state_in, lengths, y, state_out, length, chunks, heads, per_group, dim, states,
    x_row, x_token, x_head, z_row, z_token, z_head, b_row, b_token, b_group, c_row, c_token, c_group,
    T: tl.constexpr, P: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_PER_DIM: tl.constexpr, GATE: tl.constexpr,
    STATE: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    row = (tl.program_id(0) // heads).to(tl.int64)
    group = head // per_group
    i, p, n = tl.arange(0, T), tl.arange(0, P), tl.arange(0, N)
    in_dim, in_states = p < dim, n < states
    skip = tl.zeros([P], dtype=tl.float32)
    if D:
        if D_PER_DIM:
            skip = tl.load(d + head * dim + p, mask=in_dim, other=0.0).to(tl.float32)
        else:
            skip += tl.load(d + head).to(tl.float32)
    held = ((row * heads + head) * dim + p)[:, None] * states + n[None, :]
    both = in_dim[:, None] & in_states[None, :]
    h = tl.zeros([P, N], dtype=tl.float32)
    if STATE:
        h = tl.load(state_in + held, mask=both, other=0.0)
    count = token_count(lengths, row, length, LENGTHS)
    x += row * x_row + head * x_head
    z += row * z_row + head * z_head
    b += row * b_row + group * b_group
    c += row * c_row + group * c_group
    y += (row * length * heads + head) * dim
    scores += (row * chunks * (heads // per_group) + group) * T * T
    steps += (row * chunks * heads + head) * T
    decays += (row * chunks * heads + head) * T
    if GATE:  # a chunk's gate is asked for while the one before it is computed
        gate_next = tl.load(
            z + i[:, None] * z_token + p[None, :], mask=(i < count)[:, None] & in_dim[None, :], other=0.0
        )
    for first in tl.range(0, count, T, num_stages=STAGES):
        t = first + i
        on = t < count
        inside = on[:, None] & in_dim[None, :]
        xc = tl.load(x + t[:, None] * x_token + p[None, :], mask=inside, other=0.0)
        bc = tl.load(b + t[:, None] * b_token + n[None, :], mask=on[:, None] & in_states[None, :], other=0.0)
        cc = tl.load(c + t[:, None] * c_token + n[None, :], mask=on[:, None] & in_states[None, :], other=0.0)
        if GATE:
            gate = gate_next
            gate_next = tl.load(
                z + (t + T)[:, None] * z_token + p[None, :], mask=(t + T < count)[:, None] & in_dim[None, :], other=0.0
            )
        pairs = tl.load(scores + first * (heads // per_group) * T + i[:, None] * T + i[None, :])
        step = tl.load(steps + first * heads + i)
        decay = tl.load(decays + first * heads + i)
        whole = tl.load(decays + first * heads + T - 1)
        reached = pairs * tl.exp2(decay[None, :] - decay[:, None]) * step[:, None]
        weights = tl.where(i[:, None] <= i[None, :], reached, 0.0).to(xc.dtype)  # NaN of a later token stays there
        xt = tl.trans(xc)
        out = tl.dot(h.to(cc.dtype), tl.trans(cc), input_precision=PRECISION) * tl.exp2(decay)[None, :]
        out = tl.dot(xt, weights, out, input_precision=PRECISION)
        wide = xt.to(tl.float32)
        scaled = (wide * (tl.exp2(whole - decay) * step)[None, :]).to(xc.dtype)
        h = tl.dot(scaled, bc, h * tl.exp2(whole), input_precision=PRECISION)
        if D:
            out += skip[:, None] * wide
        result = tl.trans(out)
        if GATE:
            result *= silu(gate)
        tl.store(y + t[:, None] * heads * dim + p[None, :], result, mask=inside)
    for first in range(count, length, T):  # padding
        t = first + i
        nothing = tl.zeros([T, P], dtype=tl.float32)
        tl.store(y + t[:, None] * heads * dim + p[None, :], nothing, mask=(t < length)[:, None] & in_dim[None, :])
    tl.store(state_out + held, h, mask=both)


@triton.jit
def _step(
    x, dt, a, b, c, d, z, bias, state, y, heads, per_group, dim, states, dt_min, dt_max,
    x_row, x_head, x_dim, dt_row, dt_head, z_row, z_head, z_dim, b_row, b_group, b_state, c_row, c_group, c_state,
    P: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_PER_DIM: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p = tl.program_id(2) * P + tl.arange(0, P)
    n = tl.arange(0, N)
    group = head // per_group
    in_dim, in_states = p < dim, n < states
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + head).to(tl.float32)
    step = time_step(tl.load(dt + row * dt_row + head * dt_head), shift, SOFTPLUS)
    step = tl.minimum(
        tl.maximum(step, dt_min, propagate_nan=tl.PropagateNan.ALL), dt_max, propagate_nan=tl.PropagateNan.ALL
    )
    decay = tl.exp2(step * tl.load(a + head).to(tl.float32) * LOG2E)
    xt = tl.load(x + row * x_row + head * x_head + p * x_dim, mask=in_dim, other=0.0).to(tl.float32)
    bt = tl.load(b + row * b_row + group * b_group + n * b_state, mask=in_states, other=0.0).to(tl.float32)
    ct = tl.load(c + row * c_row + group * c_group + n * c_state, mask=in_states, other=0.0).to(tl.float32)
    held = ((row * heads + head) * dim + p)[:, None] * states + n[None, :]
    both = in_dim[:, None] & in_states[None, :]
    h = tl.load(state + held, mask=both, other=0.0).to(tl.float32)
    h = decay * h + (step * xt)[:, None] * bt[None, :]
    tl.store(state + held, h, mask=both)
    out = tl.sum(h * ct[None, :], 1)
    if D:
        if D_PER_DIM:
            out += tl.load(d + head * dim + p, mask=in_dim, other=0.0).to(tl.float32) * xt
        else:
            out += tl.load(d + head).to(tl.float32) * xt
    if GATE:
        out *= silu(tl.load(z + row * z_row + head * z_head + p * z_dim, mask=in_dim, other=0.0))
    tl.store(y + (row * heads + head) * dim + p, out, mask=in_dim)


def _ssd(
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
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    a, d, dt_bias, state = a.contiguous().resolve_neg(), *map(plain, (d, dt_bias, state))
    batch, length, heads, dim = x.shape
    groups, states = b.shape[2:]
    x, b, c = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, b, c))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    y = x.new_empty((batch, length, heads, dim))
    final = x.new_empty((batch, heads, dim, states), dtype=torch.float32)
    if batch == 0:
        return y, final
    gate = x if z is None else z
    chunks = triton.cdiv(length, CHUNK)
    steps, decays = x.new_empty((2, batch, chunks, heads, CHUNK), dtype=torch.float32)
    scores = x.new_empty((batch, chunks, groups, CHUNK, CHUNK), dtype=torch.float32)
    p, n = max(16, triton.next_power_of_2(dim)), max(16, triton.next_power_of_2(states))
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    with torch.cuda.device_of(x):
        if length:
            block = min(32, triton.next_power_of_2(heads))
            _time_steps[chunks, batch, triton.cdiv(heads, block)](
                dt, a, dt_bias, lengths, steps, decays, length, heads, dt_min, dt_max, *dt.stride(),
                T=CHUNK, H=block, BIAS=dt_bias is not None, LENGTHS=lengths is not None, SOFTPLUS=softplus,
            )  # fmt: skip
            _scores[chunks, batch, groups](
                b, c, lengths, scores, length, groups, states, *b.stride()[:3], *c.stride()[:3],
                T=CHUNK, N=n, LENGTHS=lengths is not None, PRECISION=precision,
            )  # fmt: skip
        _prefill[batch * heads,](
            x, b, c, d, gate, scores, steps, decays, state, lengths, y, final,
            length, chunks, heads, heads // groups, dim, states,
            *x.stride()[:3], *gate.stride()[:3], *b.stride()[:3], *c.stride()[:3],
            T=CHUNK, P=p, N=n, D=d is not None, D_PER_DIM=d is not None and d.dim() == 2, GATE=z is not None,
            STATE=state is not None, LENGTHS=lengths is not None, PRECISION=precision, STAGES=STAGES, num_warps=WARPS,
        )  # fmt: skip
    return y, final


def _ssd_step(
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
    dt_min: float,
    dt_max: float,
) -> Tensor:
    a, d, dt_bias = a.contiguous().resolve_neg(), *map(plain, (d, dt_bias))
    batch, heads, dim = x.shape
    states = b.shape[2]
    y = x.new_empty((batch, heads, dim))
    if y.numel() == 0:
        return y
    n = triton.next_power_of_2(states)
    p = min(triton.next_power_of_2(dim), max(1, 4096 // n))
    gate = x if z is None else z
    with torch.cuda.device_of(x):
        _step[(heads, batch, triton.cdiv(dim, p))](
            x, dt, a, b, c, d, gate, dt_bias, state, y, heads, heads // b.shape[1], dim, states, dt_min, dt_max,
            *x.stride(), *dt.stride(), *gate.stride(), *b.stride(), *c.stride(),
            P=p, N=n, D=d is not None, D_PER_DIM=d is not None and d.dim() == 2, GATE=z is not None,
            BIAS=dt_bias is not None, SOFTPLUS=softplus, num_warps=4,
        )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


schema.ssd.implement("CUDA", _ssd)
schema.ssd_step.implement("CUDA", _ssd_step)


def ssd(
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
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    arguments = (x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus, dt_min, dt_max)
    if learns(x, dt, a, b, c, d, z, dt_bias, state) or not fits(x, b):
        return reference.ssd(*arguments)
    y, final = (schema.ssd.call if torch.compiler.is_compiling() else _ssd)(*arguments)
    return y, final


def fits(x: Tensor, b: Tensor) -> bool:
    """Whether the state of a head fits into a program's registers."""
    return triton.next_power_of_2(x.shape[3]) * triton.next_power_of_2(b.shape[3]) <= 128 * 128


ssd_step = decode_step(schema.ssd_step, _ssd_step, slice(8, 9))
