"""Gated linear attention, token by token: the specification.

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T,    o_t = scale S_t^T q_t

GLA (arXiv 2312.06635) has a decay g per key dimension, RetNet (arXiv 2307.08621) one per head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor | None = None,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Any number of tokens, differentiable.

    Args:
        q, k: (batch, length, heads, key_dim)
        v: (batch, length, heads, head_dim)
        g: (batch, length, heads, key_dim or 1), the logarithm of the decay, at most 0
        state: (batch, heads, key_dim, head_dim), zeros by default; not modified
        scale: key_dim ** -0.5 by default
        mask: (batch, length), False at padding, which does not change the state

    Returns:
        o (batch, length, heads, head_dim) in v's dtype, and the state after the last token, float32.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kind, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    q, k, v, g = (x.to(dtype) for x in (q * scale, k, v, g))
    if mask is not None:
        k, g = k * mask[..., None, None], g * mask[..., None, None]
    batch, length, heads, _ = k.shape
    s = k.new_zeros(batch, heads, k.shape[-1], v.shape[-1]) if state is None else state.to(dtype)
    decay = g.exp()
    outputs = []
    for t in range(length):
        s = s * decay[:, t, :, :, None] + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, None] @ s)[:, :, 0])  # (batch, heads, head_dim)
    return torch.stack(outputs, 1).to(kind), s
