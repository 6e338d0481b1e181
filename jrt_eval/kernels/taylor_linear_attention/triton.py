"""The gradients of Taylor linear attention as Triton kernels: walks over chunks with the sums in registers, no features in memory.

With y = N / D, the gradients of numerator and denominator are G = [gy / D, -(gy / D).y], and the denominator is one more value
column: u = [v, 1] (times the mask). With scores s = q.k / sqrt(d), weights w = 1 + s + s^2/2 and their derivative 1 + s,

    dq_i = sum_{j<=i} (G_i.u_j) (1 + s_ij) k_j / sqrt(d)       dv_j = sum_{i>=j} w_ij gN_i
    dk_j = sum_{i>=j} (G_i.u_j) (1 + s_ij) q_i / sqrt(d)

Inside a chunk scores are formed; what lies beyond it is held as sums of x^n (outer) u: a walk forward over the keys' sums for dq, two
walks back over the queries' for dk and dv. The first two are one kernel, since q / sqrt(d) with G and k with u play the same part.
Second order is the whole d x d product here, not its half: a tile of it is then a plain outer product. A sequence is cut into parts
where there are too few (batch, head) pairs for the GPU; each part's sums are computed first.

`sums` hold rows 1, x_a, x_a x_b and columns [values, normaliser] for x = k or q / sqrt(d) as they are; `unpacked` and `packed` convert
to and from the features of jrt_eval.kernels.features and their scales.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from jrt_eval.kernels.taylor_linear_attention.features import pairs

# Elements of the second-order sums that a program holds: 64 registers in each of 256 threads for 16-bit tensors; float32 products are
# three of TF32 (as exact as float32's own), whose operands need the room.
TILE, SINGLE_TILE = 16384, 4096
PROGRAMS = 264  # two for each multiprocessor of a large GPU
SHORTEST = 512  # tokens in a part, at least


@triton.jit
def _rows(p, t, c, step, stop, width):
    """(tokens, columns), zeros outside."""
    inside = (t[:, None] < stop) & (c[None, :] < width)
    return tl.load(p + t[:, None].to(tl.int64) * step + c[None, :], mask=inside, other=0.0)


@triton.jit
def _columns(p, t, c, step, stop, width):
    """(columns, tokens), zeros outside."""
    inside = (t[None, :] < stop) & (c[:, None] < width)
    return tl.load(p + t[None, :].to(tl.int64) * step + c[:, None], mask=inside, other=0.0)


@triton.jit
def _mask(p, t, stop, MASKED: tl.constexpr):
    if MASKED:
        m = tl.load(p + t, mask=t < stop, other=0.0)
    else:
        m = (t < stop).to(tl.float32)
    return m


@triton.jit
def _one(x, u, y, below, mask, t, c, f, heads, stop, scale, D, F, QUERY: tl.constexpr, MASKED: tl.constexpr, OP: tl.constexpr):  # fmt: skip
    """A chunk of queries or keys: x (tokens, D), its values u (tokens, F), and its normaliser column (tokens,)."""
    xs = _rows(x, t, c, heads * D, stop, D).to(tl.float32)
    us = _rows(u, t, f, heads * F, stop, F).to(tl.float32)
    if QUERY:
        under = tl.load(below + t.to(tl.int64) * heads, mask=t < stop, other=1.0)
        xs = (xs * scale).to(OP)
        us = (us / under[:, None]).to(OP)
        # from the rounded gN, so that in G.u = gN.(v - y) no rounding is left over
        z = -tl.sum(us.to(tl.float32) * _rows(y, t, f, heads * F, stop, F).to(tl.float32), 1)
    else:
        z = _mask(mask, t, stop, MASKED)
        xs = xs.to(OP)
        us = (us * z[:, None]).to(OP)
    return xs, us, z


@triton.jit
def _other(x, u, y, below, mask, t, c, f, heads, stop, scale, D, F, QUERY: tl.constexpr, MASKED: tl.constexpr, OP: tl.constexpr):  # fmt: skip
    """As `_one`, with the values across: (F, tokens)."""
    xs = _rows(x, t, c, heads * D, stop, D).to(tl.float32)
    us = _columns(u, t, f, heads * F, stop, F).to(tl.float32)
    if QUERY:
        under = tl.load(below + t.to(tl.int64) * heads, mask=t < stop, other=1.0)
        xs = (xs * scale).to(OP)
        us = (us / under[None, :]).to(OP)
        z = -tl.sum(us.to(tl.float32) * _columns(y, t, f, heads * F, stop, F).to(tl.float32), 0)
    else:
        z = _mask(mask, t, stop, MASKED)
        xs = xs.to(OP)
        us = (us * z[None, :]).to(OP)
    return xs, us, z


@triton.jit
def _squares(x, xs, t, a, heads, stop, scale, D, C: tl.constexpr, A: tl.constexpr, DP: tl.constexpr, QUERY: tl.constexpr, OP: tl.constexpr):  # fmt: skip
    """x_a x_b for a block of a: (tokens, A * DP)."""
    if A == DP:
        left = xs
    else:
        left = _rows(x, t, a, heads * D, stop, D).to(tl.float32)
        if QUERY:
            left = left * scale
        left = left.to(OP)
    both = left.to(tl.float32)[:, :, None] * xs.to(tl.float32)[:, None, :]
    return tl.reshape(both, [C, A * DP])


@triton.jit(do_not_specialize=["length", "heads", "part"])
def _sums(
    x, u, y, below, mask, out, length, heads, part, scale, D, F,
    QUERY: tl.constexpr, MASKED: tl.constexpr, OP: tl.constexpr, PRECISION: tl.constexpr,
    DP: tl.constexpr, FP: tl.constexpr, A: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The sums of each part of each sequence."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, length)
    first = batch * length * heads + head
    x += first * D
    u += first * F
    y += first * F
    below += first
    mask += batch * length
    c, f = tl.arange(0, DP), tl.arange(0, FP)
    a = tl.program_id(2) * A + tl.arange(0, A)
    second = tl.zeros([FP, A * DP], dtype=tl.float32)
    one = tl.zeros([FP, DP], dtype=tl.float32)
    none = tl.zeros([FP], dtype=tl.float32)
    second_z = tl.zeros([A * DP], dtype=tl.float32)
    one_z = tl.zeros([DP], dtype=tl.float32)
    none_z = tl.zeros([C], dtype=tl.float32)
    for begin in range(start, stop, C):
        t = begin + tl.arange(0, C)
        xs, us, z = _other(x, u, y, below, mask, t, c, f, heads, stop, scale, D, F, QUERY, MASKED, OP)
        squares = _squares(x, xs, t, a, heads, stop, scale, D, C, A, DP, QUERY, OP)
        second += tl.dot(us, squares.to(OP), input_precision=PRECISION)
        one += tl.dot(us, xs, input_precision=PRECISION)
        none += tl.sum(us.to(tl.float32), 1)
        second_z += tl.sum(squares * z[:, None], 0)
        one_z += tl.sum(xs.to(tl.float32) * z[:, None], 0)
        none_z += z
    width = F + 1
    out += (pair * tl.num_programs(1) + tl.program_id(1)) * (1 + D + D * D) * width
    n = tl.arange(0, A * DP)
    n_a, n_b = tl.program_id(2) * A + n // DP, n % DP
    at = (1 + D + n_a * D + n_b) * width
    inside = (n_a < D) & (n_b < D)
    tl.store(out + at[None, :] + f[:, None], second, mask=inside[None, :] & (f[:, None] < F))
    tl.store(out + at + F, second_z, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(out + (1 + c[None, :]) * width + f[:, None], one, mask=(c[None, :] < D) & (f[:, None] < F))
        tl.store(out + (1 + c) * width + F, one_z, mask=c < D)
        tl.store(out + f, none, mask=f < F)
        tl.store(out + F, tl.sum(none_z, 0))


@triton.jit(do_not_specialize=["length", "heads", "part"])
def _walk(
    q, k, v, y, gy, below, mask, sums, dx, length, heads, part, scale, D, F,
    QUERY: tl.constexpr, CARRY: tl.constexpr, MASKED: tl.constexpr,
    OP: tl.constexpr, PRECISION: tl.constexpr, DP: tl.constexpr, FP: tl.constexpr, A: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dq (QUERY; forward over the keys' sums) or dk (backward over the queries'), columns A * program_id(2) and on.

    CARRY: the sequence itself adds to the sums that it starts from (not for a prefix, which has no queries).
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, length)
    first = batch * length * heads + head
    q += first * D
    k += first * D
    v += first * F
    y += first * F
    gy += first * F
    below += first
    mask += batch * length
    dx += first * D
    c, f = tl.arange(0, DP), tl.arange(0, FP)
    a = tl.program_id(2) * A + tl.arange(0, A)
    n = tl.arange(0, A * DP)
    n_a, n_b = tl.program_id(2) * A + n // DP, n % DP
    width = F + 1
    sums += (pair * tl.num_programs(1) + tl.program_id(1)) * (1 + D + D * D) * width
    at = (1 + D + n_a * D + n_b) * width
    inside = (n_a < D) & (n_b < D)
    second = tl.load(sums + at[None, :] + f[:, None], mask=inside[None, :] & (f[:, None] < F), other=0.0)
    second_z = tl.load(sums + at + F, mask=inside, other=0.0)
    one = tl.load(sums + (1 + c[None, :]) * width + f[:, None], mask=(c[None, :] < D) & (f[:, None] < F), other=0.0)
    one_z = tl.load(sums + (1 + c) * width + F, mask=c < D, other=0.0)
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    chunks = tl.cdiv(stop - start, C)
    for number in range(chunks):
        if QUERY:
            t = start + number * C + tl.arange(0, C)
            xs, us, z = _one(q, gy, y, below, mask, t, c, f, heads, stop, scale, D, F, True, MASKED, OP)
        else:
            t = start + (chunks - 1 - number) * C + tl.arange(0, C)
            xs, us, z = _one(k, v, y, below, mask, t, c, f, heads, stop, scale, D, F, False, MASKED, OP)
        wide = xs.to(tl.float32)
        r = tl.dot(us, second.to(OP), input_precision=PRECISION) + z[:, None] * second_z[None, :]
        r = tl.sum(tl.reshape(r, [C, A, DP]) * wide[:, None, :], 2)
        if A < DP:  # into its columns
            r = tl.sum(tl.where(c[None, None, :] == a[None, :, None], r[:, :, None], 0.0), 1)
        r += tl.dot(us, one.to(OP), input_precision=PRECISION) + z[:, None] * one_z[None, :]
        if CARRY:
            if QUERY:
                ys, ws, o = _other(k, v, y, below, mask, t, c, f, heads, stop, scale, D, F, False, MASKED, OP)
                squares = _squares(k, ys, t, a, heads, stop, scale, D, C, A, DP, False, OP)
                sees = j <= i
            else:
                ys, ws, o = _other(q, gy, y, below, mask, t, c, f, heads, stop, scale, D, F, True, MASKED, OP)
                squares = _squares(q, ys, t, a, heads, stop, scale, D, C, A, DP, True, OP)
                sees = j >= i
            s = tl.dot(xs, tl.trans(ys), input_precision=PRECISION)
            p = (tl.dot(us, ws, input_precision=PRECISION) + z[:, None] * o[None, :]) * (1 + s)
            r += tl.dot(tl.where(sees, p, 0.0).to(OP), ys, input_precision=PRECISION)
            second += tl.dot(ws, squares.to(OP), input_precision=PRECISION)
            second_z += tl.sum(squares * o[:, None], 0)
            one += tl.dot(ws, ys, input_precision=PRECISION)
            one_z += tl.sum(ys.to(tl.float32) * o[:, None], 0)
        if QUERY:
            r = r * scale
        mine = (c >= tl.program_id(2) * A) & (c < tl.minimum(tl.program_id(2) * A + A, D))
        place = t[:, None].to(tl.int64) * (heads * D) + c[None, :]
        tl.store(dx + place, r, mask=(t[:, None] < stop) & mine[None, :])


@triton.jit(do_not_specialize=["length", "heads", "part"])
def _values(
    q, k, gy, below, mask, sums, dv, length, heads, part, scale, D, F,
    CARRY: tl.constexpr, MASKED: tl.constexpr,
    OP: tl.constexpr, PRECISION: tl.constexpr, DP: tl.constexpr, FB: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dv, columns FB * program_id(2) and on, backward over the queries' sums."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, length)
    first = batch * length * heads + head
    q += first * D
    k += first * D
    gy += first * F
    dv += first * F
    below += first
    mask += batch * length
    c = tl.arange(0, DP)
    f = tl.program_id(2) * FB + tl.arange(0, FB)
    n = tl.arange(0, DP * DP)
    n_a, n_b = n // DP, n % DP
    width = F + 1
    sums += (pair * tl.num_programs(1) + tl.program_id(1)) * (1 + D + D * D) * width
    at = (1 + D + n_a * D + n_b) * width
    inside = (n_a < D) & (n_b < D)
    second = tl.load(sums + at[:, None] + f[None, :], mask=inside[:, None] & (f[None, :] < F), other=0.0)
    one = tl.load(sums + (1 + c[:, None]) * width + f[None, :], mask=(c[:, None] < D) & (f[None, :] < F), other=0.0)
    none = tl.load(sums + f, mask=f < F, other=0.0)
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    chunks = tl.cdiv(stop - start, C)
    for number in range(chunks):
        t = start + (chunks - 1 - number) * C + tl.arange(0, C)
        ks = _rows(k, t, c, heads * D, stop, D).to(tl.float32)
        squares = tl.reshape(ks[:, :, None] * ks[:, None, :], [C, DP * DP])
        r = 0.5 * tl.dot(squares.to(OP), second.to(OP), input_precision=PRECISION)
        r += tl.dot(ks.to(OP), one.to(OP), input_precision=PRECISION) + none[None, :]
        if CARRY:
            under = tl.load(below + t.to(tl.int64) * heads, mask=t < stop, other=1.0)
            g = (_rows(gy, t, f, heads * F, stop, F).to(tl.float32) / under[:, None]).to(OP)
            qs = (_columns(q, t, c, heads * D, stop, D).to(tl.float32) * scale).to(OP)
            s = tl.dot(ks.to(OP), qs, input_precision=PRECISION)
            w = tl.where(j >= i, 1 + s + 0.5 * s * s, 0.0)
            r += tl.dot(w.to(OP), g, input_precision=PRECISION)
            wide = qs.to(tl.float32)
            squares = tl.reshape(wide[:, None, :] * wide[None, :, :], [DP * DP, C])
            second += tl.dot(squares.to(OP), g, input_precision=PRECISION)
            one += tl.dot(qs, g, input_precision=PRECISION)
            none += tl.sum(g.to(tl.float32), 0)
        r = r * _mask(mask, t, stop, MASKED)[:, None]
        place = t[:, None].to(tl.int64) * (heads * F) + f[None, :]
        tl.store(dv + place, r, mask=(t[:, None] < stop) & (f[None, :] < F))


@cache
def _orders(d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each place (a, b) of the d x d product its packed feature; for each packed one a place; and whether a = b."""
    first, second = (torch.tensor(x) for x in pairs(d))
    number = torch.empty(d, d, dtype=torch.int64)
    number[first, second] = number[second, first] = torch.arange(len(first))
    return number.flatten().to(device), (first * d + second).to(device), (first == second).to(device)


def unpacked(kv: Tensor, k_sum: Tensor, d: int, gradients: bool) -> Tensor:
    """(batch, heads, features, head_dim) and (batch, heads, features) as (batch, heads, 1 + d + d * d, head_dim + 1).

    `gradients`: of the sums, and twice those of the second order (a product x_a x_b stands at two places).
    """
    x = torch.cat([kv.to(torch.float32), k_sum.to(torch.float32)[..., None]], -1)
    number, _, square = _orders(d, x.device)
    power = -1.0 if gradients else 1.0
    weight = torch.where(square, 2.0**0.5, 1.0) * d ** (power / 2)
    two = (x[:, :, 1 + d :] * weight[:, None])[:, :, number]
    return torch.cat([x[:, :, :1], x[:, :, 1 : 1 + d] * d ** (power / 4), two], 2)


def packed(sums: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Gradients of a state from those of its sums."""
    _, place, square = _orders(d, sums.device)
    weight = torch.where(square, 0.5**0.5, 1.0) * d**0.5
    two = sums[:, :, 1 + d :][:, :, place] * weight[:, None]
    x = torch.cat([sums[:, :, :1], sums[:, :, 1 : 1 + d] * d**0.25, two], 2)
    return x[..., :-1], x[..., -1]


class _Shape:
    """Sizes of one call, and how its kernels are cut."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.batch, self.length, self.heads, self.d = k.shape
        self.f = v.shape[-1]
        single = v.dtype == torch.float32
        # float16 would overflow where bfloat16 does not: sums grow with the length
        self.options = {
            "OP": tl.float32 if single else tl.bfloat16,
            "PRECISION": "tf32x3" if single else None,
            "num_warps": 4 if single else 8,
        }
        tile = SINGLE_TILE if single else TILE
        dp, fp = max(16, triton.next_power_of_2(self.d)), max(16, triton.next_power_of_2(self.f))
        a = max(1, min(dp, tile // (dp * fp)))
        chunk = 16 if single else 32
        self.walk = {"DP": dp, "FP": fp, "A": a, "C": chunk}
        self.values = {"DP": dp, "FB": max(16, min(fp, tile // (dp * dp))), "C": chunk}
        self.blocks, self.value_blocks = dp // a, triton.cdiv(self.f, self.values["FB"])
        rows = self.batch * self.heads
        parts = max(1, min(triton.cdiv(PROGRAMS, max(1, rows)), self.length // SHORTEST))
        self.part = max(1, triton.cdiv(triton.cdiv(self.length, parts), chunk)) * chunk
        self.parts = triton.cdiv(self.length, self.part)
        self.numbers = (self.length, self.heads, self.part, self.d**-0.5, self.d, self.f)

    def grid(self, blocks: int) -> tuple[int, int, int]:
        return self.batch * self.heads, self.parts, blocks

    def sums(self, x: Tensor, u: Tensor, y: Tensor, below: Tensor, mask: Tensor | None, query: bool) -> Tensor:
        """(batch, heads, parts, 1 + d + d * d, f + 1)"""
        shape = (self.batch, self.heads, self.parts, 1 + self.d + self.d**2, self.f + 1)
        out = x.new_empty(shape, dtype=torch.float32)
        _sums[self.grid(self.blocks)](
            x, u, y, below, x if mask is None else mask, out, *self.numbers,
            QUERY=query, MASKED=mask is not None, **self.options, **self.walk,
        )  # fmt: skip
        return out


def taylor_backward(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, k_sum: Tensor | None, mask: Tensor | None,
    y: Tensor, below: Tensor, gy: Tensor, g_kv: Tensor, g_k: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and the initial state, float32; `below` is the denominator that the forward pass gave."""
    q, k, v, y, gy, below = (x.contiguous() for x in (q, k, v, y, gy, below))
    mask = None if mask is None else mask.to(torch.float32).contiguous()
    if not v.numel() or not k.numel():
        return *(torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)), g_kv.clone(), g_k.clone()
    dq, dk, dv = (torch.empty_like(x, dtype=torch.float32) for x in (q, k, v))
    at = _Shape(k, v)
    after = unpacked(g_kv, g_k, at.d, gradients=True)
    if kv is None or k_sum is None:
        before = torch.zeros_like(after)[:, :, None]
    else:
        before = unpacked(kv, k_sum, at.d, gradients=False)[:, :, None]
    behind, total = after[:, :, None], after
    if at.parts > 1:
        mine = at.sums(k, v, y, below, mask, query=False)
        before = before + mine.cumsum(2) - mine
    if at.parts > 1 or kv is not None:
        mine = at.sums(q, gy, y, below, mask, query=True)
        behind = behind + mine.flip(2).cumsum(2).flip(2) - mine
        total = after + mine.sum(2)
    options = {"MASKED": mask is not None, **at.options}
    given = q if mask is None else mask
    common = (q, k, v, y, gy, below, given)
    behind = behind.contiguous()
    _walk[at.grid(at.blocks)](
        *common, before.contiguous(), dq, *at.numbers, QUERY=True, CARRY=True, **options, **at.walk
    )
    _walk[at.grid(at.blocks)](*common, behind, dk, *at.numbers, QUERY=False, CARRY=True, **options, **at.walk)
    _values[at.grid(at.value_blocks)](
        q, k, gy, below, given, behind, dv, *at.numbers, CARRY=True, **options, **at.values
    )
    return dq, dk, dv, *packed(total, at.d)


def encode_backward(k: Tensor, v: Tensor, mask: Tensor | None, g_kv: Tensor, g_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of k and v, float32, from those of a prefix' sums."""
    k, v = k.contiguous(), v.contiguous()
    mask = None if mask is None else mask.to(torch.float32).contiguous()
    if not v.numel() or not k.numel():
        return torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    dk, dv = (torch.empty_like(x, dtype=torch.float32) for x in (k, v))
    at = _Shape(k, v)
    behind = unpacked(g_kv, g_k, at.d, gradients=True)[:, :, None].expand(-1, -1, at.parts, -1, -1).contiguous()
    options = {"MASKED": mask is not None, **at.options}
    given = k if mask is None else mask
    _walk[at.grid(at.blocks)](
        k, k, v, v, v, behind, given, behind, dk, *at.numbers,
        QUERY=False, CARRY=False, **options, **at.walk,
    )  # fmt: skip
    _values[at.grid(at.value_blocks)](
        k, k, v, behind, given, behind, dv, *at.numbers, CARRY=False, **options, **at.values
    )
    return dk, dv
