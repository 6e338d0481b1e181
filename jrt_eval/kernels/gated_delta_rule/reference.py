"""The gated delta rule, token by token: the specification.

    S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,    o_t = scale S_t^T q_t

DeltaNet (arXiv 2406.06484) has g = 0, Gated DeltaNet (arXiv 2412.06464) one g per head, KDA (arXiv 2510.26692) one per
key dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    state: Tensor | None = None,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Any number of tokens, differentiable.

    Args:
        q, k: (batch, length, heads, key_dim); k is usually of length 1
        v: (batch, length, heads, head_dim)
        beta: (batch, length, heads), how much of the new value is written
        g: (batch, length, heads, key_dim or 1), the logarithm of the decay, at most 0; None: no decay
        state: (batch, heads, key_dim, head_dim), zeros by default; not modified
        scale: key_dim ** -0.5 by default
        mask: (batch, length), False at padding, which does not change the state

    Returns:
        o (batch, length, heads, head_dim) in v's dtype, and the state after the last token, float32.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kind, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    q, k, v, beta = (x.to(dtype) for x in (q * scale, k, v, beta))
    decay = None if g is None else g.to(dtype)
    if mask is not None:
        beta = beta * mask[..., None]
        decay = None if decay is None else decay * mask[..., None, None]
    decay = None if decay is None else decay.exp()
    batch, length, heads, _ = k.shape
    s = k.new_zeros(batch, heads, k.shape[-1], v.shape[-1]) if state is None else state.to(dtype)
    outputs = []
    for t in range(length):
        if decay is not None:
            s = s * decay[:, t, :, :, None]
        written = (k[:, t, :, None] @ s)[:, :, 0]  # S^T k, (batch, heads, head_dim)
        new = (v[:, t] - written) * beta[:, t, :, None]
        s = s + k[:, t, :, :, None] * new[:, :, None]
        outputs.append((q[:, t, :, None] @ s)[:, :, 0])
    return torch.stack(outputs, 1).to(kind), s
