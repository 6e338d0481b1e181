"""`gated_linear_attention` in PyTorch, one token after the other: the specification of the operator.

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

GLA (arXiv 2312.06635) has a gate per key channel; RetNet (arXiv 2307.08621), simple GLA and Lightning attention have one per head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.layout import wide


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `jrt_eval.kernels.gated_linear_attention`; differentiable, on any device."""
    q, k = (for_each_head(x, v) for x in (q, k))
    state, outputs = initial_state(q, v, state), []
    for t in range(q.shape[1]):
        y, new = _token(q[:, t], k[:, t], v[:, t], None if g is None else g[:, t], state, scale)
        y, state = within(t, lengths, y, new, state)
        outputs.append(y)
    return torch.stack(outputs, 1) if outputs else v.new_zeros(v.shape), state


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float
) -> Tensor:
    """See `jrt_eval.kernels.gated_linear_attention_step`."""
    y, new = _token(for_each_head(q, v), for_each_head(k, v), v, g, state.to(wide(v.dtype)), scale)
    state.copy_(new)
    return y


def for_each_head(x: Tensor, v: Tensor) -> Tensor:
    """q or k (..., key heads, key dim) repeated for the heads of v (..., heads, head dim) that share them."""
    groups = v.shape[-2] // x.shape[-2]
    return x if groups == 1 else x.repeat_interleave(groups, -2)


def within(t: int, lengths: Tensor | None, y: Tensor, new: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Output and state of token t: 0 and the state before it in rows that have ended."""
    if lengths is None:
        return y, new
    counts = (t < lengths)[:, None, None]
    return torch.where(counts, y, 0.0), torch.where(counts[..., None], new, state)


def initial_state(q: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    """The state (batch, heads, key dim, head dim) before the first token, in the dtype of the sums."""
    if state is not None:
        return state.to(wide(v.dtype))
    return v.new_zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=wide(v.dtype))


def decayed(state: Tensor, g: Tensor | None) -> Tensor:
    """exp(g) S for a gate per key channel (batch, heads, key dim) or per head (batch, heads)."""
    if g is None:
        return state
    decay = g.to(state.dtype).exp()
    return state * (decay[..., None, None] if g.dim() == 2 else decay[..., None])


def read(q: Tensor, state: Tensor, scale: float) -> Tensor:
    """scale S^T q, (batch, heads, head dim)."""
    return (q.to(state.dtype)[..., None] * state).sum(-2) * scale


def _token(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    state = decayed(state, g) + k.to(state.dtype)[..., None] * v.to(state.dtype)[..., None, :]
    return read(q, state, scale).to(v.dtype), state
