"""Gated linear attention and the gated delta rule as Triton kernels, a chunk of tokens at a time (formulas: the `parallel` modules).

Two kernels compute a prefill. `_within` runs for all chunks at once and writes what does not depend on the state: the sums of the gates,
the products of queries and keys, and for the delta rule the inverse of its triangular system. `_walk` has a block of columns of one
head's state in registers and goes from chunk to chunk by matrix products. `_step` computes one token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import learns, single
from jrt_eval.kernels.gated_linear_attention import parallel, schema
from jrt_eval.kernels.triton_common import token_count

CHUNK, CHUNK_PER_CHANNEL = 32, 16  # tokens of a chunk with a gate per head and per key channel
STATE = 8192  # numbers of the state in one program's registers
WIDEST = 512  # the largest key dim
SMALLEST_GATE = tl.constexpr(parallel.SMALLEST_GATE)


@triton.jit
def _decay(difference):
    """exp of a difference of sums of gates, which is positive only where the result is not used."""
    return tl.exp(tl.minimum(difference, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _within(
    q, k, g, beta, lengths, sums, scores, solve, length, chunks, heads, per_group, key_dim,
    q_row, q_token, q_head, k_row, k_token, k_head,
    T: tl.constexpr, K: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr, LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk of one head, all float32: sums of gates (token) or (token, channel), scores and the system's inverse
    (target, source). GATE: 0 none, 1 per head, 2 per key channel."""
    chunk, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, T), tl.arange(0, K)
    t = chunk * T + i
    on = t < token_count(lengths, row, length, LENGTHS)
    inside = on[:, None] & (c < key_dim)[None, :]
    group = head // per_group
    place = (row * heads + head) * chunks + chunk
    qc = tl.load(q + row * q_row + group * q_head + t[:, None] * q_token + c[None, :], mask=inside, other=0.0)
    kc = tl.load(k + row * k_row + group * k_head + t[:, None] * k_token + c[None, :], mask=inside, other=0.0)
    qc, kc = qc.to(tl.float32), kc.to(tl.float32)
    token = (row * length + t) * heads + head
    seen, before = i[:, None] >= i[None, :], i[:, None] > i[None, :]
    system = tl.zeros([T, T], dtype=tl.float32)
    if GATE == 2:
        gate = tl.load(g + token[:, None] * key_dim + c[None, :], mask=inside, other=0.0).to(tl.float32)
        total = tl.cumsum(tl.maximum(gate, SMALLEST_GATE, propagate_nan=tl.PropagateNan.ALL), 0)
        tl.store(sums + (place * T + i)[:, None] * K + c[None, :], total)
        pairs = tl.zeros([T, T], dtype=tl.float32)
        for j in range(T):  # a column: all targets of the source j
            at = (i == j)[:, None]
            k_j, total_j = tl.sum(tl.where(at, kc, 0.0), 0), tl.sum(tl.where(at, total, 0.0), 0)
            weighed = k_j[None, :] * _decay(total - total_j[None, :])
            pairs = tl.where((i == j)[None, :], tl.sum(qc * weighed, 1)[:, None], pairs)
            if DELTA:
                system = tl.where((i == j)[None, :], tl.sum(kc * weighed, 1)[:, None], system)
    else:
        pairs = tl.dot(qc, tl.trans(kc), input_precision=PRECISION)
        if DELTA:
            system = tl.dot(kc, tl.trans(kc), input_precision=PRECISION)
        if GATE == 1:
            gate = tl.load(g + token, mask=on, other=0.0).to(tl.float32)
            total = tl.cumsum(tl.maximum(gate, SMALLEST_GATE, propagate_nan=tl.PropagateNan.ALL), 0)
            tl.store(sums + place * T + i, total)
            decay = _decay(total[:, None] - total[None, :])
            pairs *= decay
            system *= decay
    square = place * T * T + i[:, None] * T + i[None, :]
    tl.store(scores + square, tl.where(seen, pairs, 0.0))
    if DELTA:
        rate = tl.load(beta + token, mask=on, other=0.0).to(tl.float32)
        system = tl.where(before, system * rate[:, None], 0.0)
        inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
        for j in range(1, T):  # row j of the inverse from the rows above it
            factors = tl.sum(tl.where((i == j)[:, None], system, 0.0), 0)
            row_j = tl.sum(factors[:, None] * inverse, 0)
            inverse = tl.where((i == j)[:, None], inverse - row_j[None, :], inverse)
        tl.store(solve + square, inverse * rate[None, :])


@triton.jit
def _walk(
    q, k, v, sums, scores, solve, state_in, lengths, y, state_out, scale, length, chunks, heads, per_group, key_dim,
    head_dim, q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr, STATE: tl.constexpr,
    LENGTHS: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c, e = tl.arange(0, T), tl.arange(0, K), block * V + tl.arange(0, V)
    in_key, in_head = c < key_dim, e < head_dim
    group = head // per_group
    held = ((row * heads + head) * key_dim + c)[:, None] * head_dim + e[None, :]
    both = in_key[:, None] & in_head[None, :]
    s = tl.zeros([K, V], dtype=tl.float32)
    if STATE:
        s = tl.load(state_in + held, mask=both, other=0.0)
    count = token_count(lengths, row, length, LENGTHS)
    q += row * q_row + group * q_head
    k += row * k_row + group * k_head
    v += row * v_row + head * v_head
    y += (row * length * heads + head) * head_dim
    place = (row * heads + head) * chunks
    for first in tl.range(0, count, T, num_stages=STAGES):
        t = first + i
        on = t < count
        here = place + first // T
        keys = on[:, None] & in_key[None, :]
        values = on[:, None] & in_head[None, :]
        qc = tl.load(q + t[:, None] * q_token + c[None, :], mask=keys, other=0.0).to(tl.float32)
        kc = tl.load(k + t[:, None] * k_token + c[None, :], mask=keys, other=0.0).to(tl.float32)
        u = tl.load(v + t[:, None] * v_token + e[None, :], mask=values, other=0.0).to(tl.float32)
        square = here * T * T + i[:, None] * T + i[None, :]
        pairs = tl.load(scores + square)
        if GATE == 0:
            q_in, k_in, k_out, kept = qc, kc, kc, s
        elif GATE == 1:
            total = tl.load(sums + here * T + i)
            whole = tl.load(sums + here * T + T - 1)
            since = tl.exp(total)[:, None]
            q_in, k_in, k_out = qc * since, kc * since, kc * tl.exp(whole - total)[:, None]
            kept = s * tl.exp(whole)
        else:
            total = tl.load(sums + (here * T + i)[:, None] * K + c[None, :])
            whole = tl.load(sums + (here * T + T - 1) * K + c)
            since = tl.exp(total)
            q_in, k_in, k_out = qc * since, kc * since, kc * tl.exp(whole[None, :] - total)
            kept = s * tl.exp(whole)[:, None]
        if DELTA:
            u -= tl.dot(k_in, s, input_precision=PRECISION)
            u = tl.dot(tl.load(solve + square), u, input_precision=PRECISION)
        out = tl.dot(q_in, s, input_precision=PRECISION)
        out = tl.dot(pairs, u, out, input_precision=PRECISION) * scale
        s = tl.dot(tl.trans(k_out), u, kept, input_precision=PRECISION)
        tl.store(y + t[:, None] * heads * head_dim + e[None, :], out, mask=values)
    for first in range(count, length, T):  # padding
        t = first + i
        nothing = tl.zeros([T, V], dtype=tl.float32)
        tl.store(y + t[:, None] * heads * head_dim + e[None, :], nothing, mask=(t < length)[:, None] & in_head[None, :])
    tl.store(state_out + held, s, mask=both)


@triton.jit
def _step(
    q, k, v, g, beta, state, y, scale, heads, per_group, key_dim, head_dim,
    q_row, q_head, k_row, k_head, v_row, v_head,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c, e = tl.arange(0, K), block * V + tl.arange(0, V)
    in_key, in_head = c < key_dim, e < head_dim
    group, token = head // per_group, row * heads + head
    held = (token * key_dim + c)[:, None] * head_dim + e[None, :]
    both = in_key[:, None] & in_head[None, :]
    s = tl.load(state + held, mask=both, other=0.0).to(tl.float32)
    qt = tl.load(q + row * q_row + group * q_head + c, mask=in_key, other=0.0).to(tl.float32)
    kt = tl.load(k + row * k_row + group * k_head + c, mask=in_key, other=0.0).to(tl.float32)
    u = tl.load(v + row * v_row + head * v_head + e, mask=in_head, other=0.0).to(tl.float32)
    if GATE == 1:
        s *= tl.exp(tl.load(g + token).to(tl.float32))
    if GATE == 2:
        s *= tl.exp(tl.load(g + token * key_dim + c, mask=in_key, other=0.0).to(tl.float32))[:, None]
    if DELTA:
        u = (u - tl.sum(s * kt[:, None], 0)) * tl.load(beta + token).to(tl.float32)
    s += kt[:, None] * u[None, :]
    tl.store(state + held, s, mask=both)
    tl.store(y + token * head_dim + e, tl.sum(s * qt[:, None], 0) * scale, mask=in_head)


def _sizes(q: Tensor, v: Tensor) -> tuple[int, int]:
    """Key channels, and columns of the state, that a program has."""
    wide = max(16, triton.next_power_of_2(q.shape[-1]))
    return wide, min(max(16, triton.next_power_of_2(v.shape[-1])), max(16, STATE // wide), 64)


def _gate(g: Tensor | None, dims: int) -> int:
    """0: none, 1: per head, 2: per key channel."""
    return 0 if g is None else 1 if g.dim() == dims - 1 else 2


def _rows(x: Tensor) -> Tensor:
    """x with adjacent numbers in its last dimension."""
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 else x.contiguous()


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    state: Tensor | None,
    scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and final state; with beta (batch, length, heads), of the gated delta rule."""
    q, k, v = map(_rows, (q, k, v))
    g, beta, state = single(g), single(beta), single(state)
    batch, length, heads, head_dim = v.shape
    key_heads, key_dim = q.shape[2:]
    y = v.new_empty(v.shape)
    final = v.new_empty((batch, heads, key_dim, head_dim), dtype=torch.float32)
    if batch == 0:
        return y, final
    gate = _gate(g, 4)
    size = CHUNK_PER_CHANNEL if gate == 2 else CHUNK
    chunks = triton.cdiv(length, size)
    wide, columns = _sizes(q, v)
    squares = (batch, heads, chunks, size, size)
    sums = v.new_empty((*squares[:4], wide) if gate == 2 else squares[:4], dtype=torch.float32)
    scores = v.new_empty(squares, dtype=torch.float32)
    solve = scores if beta is None else torch.empty_like(scores)
    precision = "ieee" if v.dtype is torch.float32 else "tf32"
    shared = {
        "T": size, "K": wide, "GATE": gate, "DELTA": beta is not None, "LENGTHS": lengths is not None, "PRECISION": precision
    }  # fmt: skip
    per_group = heads // key_heads
    with torch.cuda.device_of(v):
        if length:
            _within[chunks, heads, batch](
                q, k, q if g is None else g, q if beta is None else beta, lengths, sums, scores, solve, length, chunks,
                heads, per_group, key_dim, *q.stride()[:3], *k.stride()[:3], **shared, num_warps=4,
            )  # fmt: skip
        _walk[triton.cdiv(head_dim, columns), heads, batch](
            q, k, v, sums, scores, solve, state, lengths, y, final, scale, length, chunks, heads, per_group, key_dim,
            head_dim, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], **shared, V=columns, STATE=state is not None,
            STAGES=2 if wide <= 128 else 1, num_warps=4,
        )  # fmt: skip
    return y, final


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, state: Tensor, scale: float) -> Tensor:
    """One token: y (batch, heads, head dim); the state is updated in place."""
    q, k, v = map(_rows, (q, k, v))
    g, beta = single(g), single(beta)
    batch, heads, head_dim = v.shape
    y = v.new_empty(v.shape)
    if y.numel():
        wide, columns = _sizes(q, v)
        columns = min(columns, max(16, 4096 // wide))
        with torch.cuda.device_of(v):
            _step[triton.cdiv(head_dim, columns), heads, batch](
                q, k, v, q if g is None else g, q if beta is None else beta, state, y, scale, heads, heads // q.shape[1],
                q.shape[2], head_dim, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
                K=wide, V=columns, GATE=_gate(g, 3), DELTA=beta is not None, num_warps=4,
            )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


def fits(q: Tensor) -> bool:
    """Whether columns of a head's state fit into a program's registers."""
    return q.shape[-1] <= WIDEST


def _prefill(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    return prefill(q, k, v, g, None, state, scale, lengths)


def _one(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float) -> Tensor:
    return step(q, k, v, g, None, state, scale)


schema.gated_linear_attention.implement("CUDA", _prefill)
schema.gated_linear_attention_step.implement("CUDA", _one)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    if learns(q, k, v, g, state) or not fits(q):
        return parallel.gated_linear_attention(q, k, v, g, state, scale, lengths)
    run = schema.gated_linear_attention.call if torch.compiler.is_compiling() else _prefill
    y, final = run(q, k, v, g, state, scale, lengths)
    return y, final


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float
) -> Tensor:
    run = schema.gated_linear_attention_step.call if torch.compiler.is_compiling() else _one
    y: Tensor = run(q, k, v, g, state, scale)
    return y
