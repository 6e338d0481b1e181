"""The gradients of the linear operators in plain PyTorch: what a GPU takes where Triton is missing, and `causal_dot_product` anywhere.

They walk over segments of a sequence, forward for the queries' gradients and back for the others', and hold features and scores of one
segment at a time: memory is linear in length. Inside a segment chunks are one more dimension of the tensors, so that a GPU gets large
products. Sums are float32 (float64 for float64); so are the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jrt_eval.kernels.features import feature_map, feature_map_backward

CHUNK, SEGMENT = 64, 1024


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _heads_first(x: Tensor) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, length, dim), wide."""
    return x.transpose(1, 2).to(_wide(x))


def _segments(length: int) -> Iterator[slice]:
    for start in range(0, length, SEGMENT):
        yield slice(start, min(start + SEGMENT, length))


def _chunks(x: Tensor) -> Tensor:
    """(batch, heads, tokens, dim) -> (batch, heads, chunks, CHUNK, dim), zeros behind the end."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % CHUNK))
    return x.unflatten(2, (-1, CHUNK))


def _walk(u: Tensor, other_x: Tensor, other_u: Tensor, sums: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """r_i = sum (u_i . u'_j) x'_j over j <= i (i <= j when going `back`) and over `sums` = sum x'_j u'_j^T; and the new sums.

    All (batch, heads, tokens, dim), sums (batch, heads, features, values).
    """
    tokens = u.shape[2]
    u, other_x, other_u = _chunks(u), _chunks(other_x), _chunks(other_u)
    each = other_x.transpose(-1, -2) @ other_u
    total = each.flip(2).cumsum(2).flip(2) if back else each.cumsum(2)
    p = u @ other_u.transpose(-1, -2)
    r = (p.triu() if back else p.tril()) @ other_x
    r = r + u @ (total - each + sums[:, :, None]).transpose(-1, -2)
    return r.flatten(2, 3)[:, :, :tokens], sums + (total[:, :, 0] if back else total[:, :, -1])


def causal_product_backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, gy: Tensor, g_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the initial state of y_i = q_i.S_0 + sum_{j<=i} (q_i.k_j) v_j."""
    wide = _wide(v)
    dq, dk, dv = (x.new_empty(x.shape, dtype=wide) for x in (q, k, v))
    sums = torch.zeros_like(g_state, dtype=wide) if state is None else state.to(wide)
    for at in _segments(v.shape[1]):
        kc, vc, gc = (_heads_first(x[:, at]) for x in (k, v, gy))
        r, sums = _walk(gc, kc, vc, sums, back=False)
        dq[:, at] = r.transpose(1, 2)
    after = g_state.to(wide)
    for at in reversed(list(_segments(v.shape[1]))):
        qc, kc, vc, gc = (_heads_first(x[:, at]) for x in (q, k, v, gy))
        r, more = _walk(vc, qc, gc, after, back=True)
        dk[:, at] = r.transpose(1, 2)
        r, _ = _walk(kc, gc, qc, after.transpose(-1, -2), back=True)
        dv[:, at] = r.transpose(1, 2)
        after = more
    return dq, dk, dv, after


def _values(v: Tensor, mask: Tensor | None, at: slice) -> Tensor:
    """Values with the normaliser's column of ones, (batch, heads, tokens, head_dim + 1), zeros where the mask is."""
    u = _heads_first(v[:, at])
    u = torch.cat([u, torch.ones_like(u[..., :1])], -1)
    return u if mask is None else u * mask[:, at].to(u.dtype)[:, None, :, None]


def taylor_backward(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, k_sum: Tensor | None, mask: Tensor | None,
    y: Tensor, below: Tensor, gy: Tensor, g_kv: Tensor, g_k: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and the initial state, from y, its denominator `below` and the gradients of y and the final state.

    The normaliser is one more value column, and its gradient -(gy / below).y.
    """
    wide = _wide(v)
    dq, dk, dv = (x.new_empty(x.shape, dtype=wide) for x in (q, k, v))
    after = torch.cat([g_kv.to(wide), g_k.to(wide)[..., None]], -1)
    if kv is None or k_sum is None:
        sums = torch.zeros_like(after)
    else:
        sums = torch.cat([kv.to(wide), k_sum.to(wide)[..., None]], -1)

    def grads(at: slice) -> Tensor:
        g = _heads_first(gy[:, at]) / below[:, at].to(wide).transpose(1, 2)[..., None]
        return torch.cat([g, -(g * _heads_first(y[:, at])).sum(-1, keepdim=True)], -1)

    for at in _segments(v.shape[1]):
        qc, kc, g = _heads_first(q[:, at]), _heads_first(k[:, at]), grads(at)
        r, sums = _walk(g, feature_map(kc), _values(v, mask, at), sums, back=False)
        dq[:, at] = feature_map_backward(qc, r).transpose(1, 2)
    for at in reversed(list(_segments(v.shape[1]))):
        qc, kc, g, u = _heads_first(q[:, at]), _heads_first(k[:, at]), grads(at), _values(v, mask, at)
        fq, fk = feature_map(qc), feature_map(kc)
        r, more = _walk(u, fq, g, after, back=True)
        dk[:, at] = feature_map_backward(kc, r).transpose(1, 2)
        r, _ = _walk(fk, g, fq, after.transpose(-1, -2), back=True)
        r = r[..., :-1] * u[..., -1:]
        dv[:, at] = r.transpose(1, 2)
        after = more
    return dq, dk, dv, after[..., :-1], after[..., -1]


def encode_backward(k: Tensor, v: Tensor, mask: Tensor | None, g_kv: Tensor, g_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of k and v from those of the sums KV = sum phi(k) v^T and K = sum phi(k)."""
    wide = _wide(v)
    dk, dv = (x.new_empty(x.shape, dtype=wide) for x in (k, v))
    g = torch.cat([g_kv.to(wide), g_k.to(wide)[..., None]], -1)
    for at in _segments(v.shape[1]):
        kc, u = _heads_first(k[:, at]), _values(v, mask, at)
        dk[:, at] = feature_map_backward(kc, u @ g.transpose(-1, -2)).transpose(1, 2)
        dv[:, at] = ((feature_map(kc) @ g)[..., :-1] * u[..., -1:]).transpose(1, 2)
    return dk, dv
