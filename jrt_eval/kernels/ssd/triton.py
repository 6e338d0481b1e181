"""The recurrence of Mamba-2 as one Triton kernel: a program has the state of one head in registers and walks over chunks of its row.

Within a chunk everything is a product of matrices (see `reference`): the scores C B^T, their weighted sum of inputs, C times the state,
and the update of the state. Nothing but the output and the final state is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import learns, single
from jrt_eval.kernels.selective_scan.triton import LOG2E, silu, time_step
from jrt_eval.kernels.ssd import reference, schema

# Tokens of a chunk, warps of a program, and how many chunks ahead inputs are asked for.
CHUNK, WARPS, STAGES = 32, 4, 3


@triton.jit
def _prefill(
    x, dt, a, b, c, d, z, bias, state_in, lengths, y, state_out, length, heads, per_group, dim, states, dt_min, dt_max,
    x_row, x_token, x_head, dt_row, dt_token, dt_head, z_row, z_token, z_head,
    b_row, b_token, b_group, c_row, c_token, c_group,
    T: tl.constexpr, P: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_PER_DIM: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, STATE: tl.constexpr, LENGTHS: tl.constexpr, SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    row = (tl.program_id(0) // heads).to(tl.int64)
    group = head // per_group
    i, p, n = tl.arange(0, T), tl.arange(0, P), tl.arange(0, N)
    in_dim, in_states = p < dim, n < states
    rate = tl.load(a + head).to(tl.float32) * LOG2E
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + head).to(tl.float32)
    skip = tl.zeros([P], dtype=tl.float32)
    if D:
        if D_PER_DIM:
            skip = tl.load(d + head * dim + p, mask=in_dim, other=0.0).to(tl.float32)
        else:
            skip += tl.load(d + head).to(tl.float32)
    held = ((row * heads + head) * dim + p)[None, :] * states + n[:, None]
    both = in_states[:, None] & in_dim[None, :]
    h = tl.zeros([N, P], dtype=tl.float32)
    if STATE:
        h = tl.load(state_in + held, mask=both, other=0.0)
    count = length
    if LENGTHS:
        count = tl.minimum(tl.maximum(tl.load(lengths + row).to(tl.int32), 0), length)
    x += row * x_row + head * x_head
    dt += row * dt_row + head * dt_head
    z += row * z_row + head * z_head
    b += row * b_row + group * b_group
    c += row * c_row + group * c_group
    y += (row * length * heads + head) * dim
    for first in tl.range(0, count, T, num_stages=STAGES):
        t = first + i
        on = t < count
        xc = tl.load(x + t[:, None] * x_token + p[None, :], mask=on[:, None] & in_dim[None, :], other=0.0)
        bc = tl.load(b + t[None, :] * b_token + n[:, None], mask=on[None, :] & in_states[:, None], other=0.0)
        cc = tl.load(c + t[:, None] * c_token + n[None, :], mask=on[:, None] & in_states[None, :], other=0.0)
        step = time_step(tl.load(dt + t * dt_token, mask=on, other=0.0), shift, SOFTPLUS)
        step = tl.minimum(
            tl.maximum(step, dt_min, propagate_nan=tl.PropagateNan.ALL), dt_max, propagate_nan=tl.PropagateNan.ALL
        )
        step = tl.where(on, step, 0.0)
        decays = tl.cumsum(step * rate, 0)
        whole = tl.sum(tl.where(i == T - 1, decays, 0.0), 0)  # in the sum's own rounding
        scores = tl.dot(cc, bc, input_precision=PRECISION)
        between = tl.exp2(tl.where(i[:, None] >= i[None, :], decays[:, None] - decays[None, :], float("-inf")))
        out = tl.dot(cc, h.to(cc.dtype), input_precision=PRECISION) * tl.exp2(decays)[:, None]
        weights = (scores * between * step[None, :]).to(xc.dtype)
        out += tl.dot(weights, xc, input_precision=PRECISION)
        left = (tl.exp2(whole - decays) * step)[None, :]
        update = tl.dot((bc.to(tl.float32) * left).to(xc.dtype), xc, input_precision=PRECISION)
        h = h * tl.exp2(whole) + update
        if D:
            out += skip[None, :] * xc.to(tl.float32)
        if GATE:
            out *= silu(tl.load(z + t[:, None] * z_token + p[None, :], mask=on[:, None] & in_dim[None, :], other=0.0))
        tl.store(y + t[:, None] * heads * dim + p[None, :], out, mask=on[:, None] & in_dim[None, :])
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
    a, d, dt_bias, state = a.to(torch.float32).contiguous(), *map(single, (d, dt_bias, state))
    batch, length, heads, dim = x.shape
    groups, states = b.shape[2:]
    x, b, c = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, b, c))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    y = x.new_empty((batch, length, heads, dim))
    final = x.new_empty((batch, heads, dim, states), dtype=torch.float32)
    if batch == 0:
        return y, final
    gate = x if z is None else z
    with torch.cuda.device_of(x):
        _prefill[(batch * heads,)](
            x, dt, a, b, c, d, gate, dt_bias, state, lengths, y, final, length, heads, heads // groups, dim, states,
            dt_min, dt_max, *x.stride()[:3], *dt.stride(), *gate.stride()[:3], *b.stride()[:3], *c.stride()[:3],
            T=CHUNK, P=max(16, triton.next_power_of_2(dim)), N=max(16, triton.next_power_of_2(states)),
            D=d is not None, D_PER_DIM=d is not None and d.dim() == 2, GATE=z is not None, BIAS=dt_bias is not None,
            STATE=state is not None, LENGTHS=lengths is not None, SOFTPLUS=softplus,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", STAGES=STAGES, num_warps=WARPS,
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
    a, d, dt_bias = a.to(torch.float32).contiguous(), single(d), single(dt_bias)
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
    return y


def _step_in_place(
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
    y = _ssd_step(x, dt, a, b, c, d, z, dt_bias, state, softplus, dt_min, dt_max)
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


def ssd_step(
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
    call = schema.ssd_step.call if torch.compiler.is_compiling() else _step_in_place
    y: Tensor = call(x, dt, a, b, c, d, z, dt_bias, state, softplus, dt_min, dt_max)
    return y
