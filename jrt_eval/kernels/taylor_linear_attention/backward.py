"""The gradients of Taylor linear attention in PyTorch, for a GPU without Triton; see causal_dot_product.backward."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.causal_dot_product.backward import heads, segments, walk
from jrt_eval.kernels.layout import unmasked, wide
from jrt_eval.kernels.taylor_linear_attention.features import feature_map, feature_map_backward


def _values(v: Tensor, mask: Tensor | None, at: slice) -> Tensor:
    """Values with the normaliser's column of ones, (batch, heads, tokens, head_dim + 1), zeros where the mask is."""
    u = heads(v[:, at])
    u = torch.cat([u, torch.ones_like(u[..., :1])], -1)
    return u if mask is None else u * mask[:, at].to(u.dtype)[:, None, :, None]


def taylor_backward(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, k_sum: Tensor | None, mask: Tensor | None,
    y: Tensor, below: Tensor, gy: Tensor, g_kv: Tensor, g_k: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and the initial state, from y, its denominator `below` and the gradients of y and the final state.

    The normaliser is one more value column, and its gradient -(gy / below).y.
    """
    k, v = unmasked(k, mask), unmasked(v, mask)
    dtype = wide(v.dtype)
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    after = torch.cat([g_kv.to(dtype), g_k.to(dtype)[..., None]], -1)
    if kv is None or k_sum is None:
        sums = torch.zeros_like(after)
    else:
        sums = torch.cat([kv.to(dtype), k_sum.to(dtype)[..., None]], -1)

    def grads(at: slice) -> Tensor:
        g = heads(gy[:, at]) / below[:, at].to(dtype).transpose(1, 2)[..., None]
        return torch.cat([g, -(g * heads(y[:, at])).sum(-1, keepdim=True)], -1)

    for at in segments(v.shape[1]):
        qc, kc, g = heads(q[:, at]), heads(k[:, at]), grads(at)
        r, sums = walk(g, feature_map(kc), _values(v, mask, at), sums, back=False)
        dq[:, at] = feature_map_backward(qc, r).transpose(1, 2)
    for at in reversed(list(segments(v.shape[1]))):
        qc, kc, g, u = heads(q[:, at]), heads(k[:, at]), grads(at), _values(v, mask, at)
        fq, fk = feature_map(qc), feature_map(kc)
        r, more = walk(u, fq, g, after, back=True)
        dk[:, at] = feature_map_backward(kc, r).transpose(1, 2)
        r, _ = walk(fk, g, fq, after.transpose(-1, -2), back=True)
        r = r[..., :-1] * u[..., -1:]
        dv[:, at] = r.transpose(1, 2)
        after = more
    return dq, dk, dv, after[..., :-1], after[..., -1]


def encode_backward(k: Tensor, v: Tensor, mask: Tensor | None, g_kv: Tensor, g_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of k and v from those of the sums KV = sum phi(k) v^T and K = sum phi(k)."""
    k, v = unmasked(k, mask), unmasked(v, mask)
    dtype = wide(v.dtype)
    dk, dv = (x.new_empty(x.shape, dtype=dtype) for x in (k, v))
    g = torch.cat([g_kv.to(dtype), g_k.to(dtype)[..., None]], -1)
    for at in segments(v.shape[1]):
        kc, u = heads(k[:, at]), _values(v, mask, at)
        dk[:, at] = feature_map_backward(kc, u @ g.transpose(-1, -2)).transpose(1, 2)
        dv[:, at] = ((feature_map(kc) @ g)[..., :-1] * u[..., -1:]).transpose(1, 2)
    return dk, dv
