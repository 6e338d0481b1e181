"""`gated_delta_rule` in PyTorch, one token after the other: the specification of the operator.

    S = diag(exp g_t) S_{t-1}          S_t = S + beta_t k_t (v_t - S^T k_t)^T          o_t = scale S_t^T q_t

DeltaNet (arXiv 2406.06484) has no gate, Gated DeltaNet (arXiv 2412.06464) one per head, Kimi delta attention
(arXiv 2510.26692) one per key channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.gated_linear_attention.reference import decayed, for_each_head, initial_state, read, within
from jrt_eval.kernels.layout import wide


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor | None,
    scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `jrt_eval.kernels.gated_delta_rule`; differentiable, on any device."""
    q, k = (for_each_head(x, v) for x in (q, k))
    state, outputs = initial_state(q, v, state), []
    for t in range(q.shape[1]):
        y, new = _token(q[:, t], k[:, t], v[:, t], None if g is None else g[:, t], beta[:, t], state, scale)
        y, state = within(t, lengths, y, new, state)
        outputs.append(y)
    return torch.stack(outputs, 1) if outputs else v.new_zeros(v.shape), state


def gated_delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor, scale: float
) -> Tensor:
    """See `jrt_eval.kernels.gated_delta_rule_step`."""
    y, new = _token(for_each_head(q, v), for_each_head(k, v), v, g, beta, state.to(wide(v.dtype)), scale)
    state.copy_(new)
    return y


def _token(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    sums = state.dtype
    state = decayed(state, g)
    error = v.to(sums) - read(k, state, 1.0)
    state = state + k.to(sums)[..., None] * (beta.to(sums)[..., None] * error)[..., None, :]
    return read(q, state, scale).to(v.dtype), state
