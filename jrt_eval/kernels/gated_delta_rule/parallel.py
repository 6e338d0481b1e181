"""`gated_delta_rule` in PyTorch, a chunk of tokens at a time: matrix products on any device, with gradients.

Within a chunk that starts from the state S, with G_i the sum of the gates up to token i, the corrections u_i solve a unit lower
triangular system (arXiv 2406.06484, section 3):

    u_i + beta_i sum_{j<i} (k_i . k_j exp(G_i - G_j)) u_j = beta_i [v_i - (k_i exp G_i)^T S]
    o_i = scale [ (q_i exp G_i)^T S + sum_{j<=i} (q_i . k_j exp(G_i - G_j)) u_j ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.gated_linear_attention.parallel import chunks, joined, pairs
from jrt_eval.kernels.gated_linear_attention.reference import initial_state


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
    """See `jrt_eval.kernels.gated_delta_rule`."""
    state = initial_state(q, v, state)
    rate = beta.to(state.dtype).transpose(1, 2)[..., None]  # (batch, heads, length, 1)
    parts, start = [], 0
    for q_c, k_c, v_c, gates in chunks(q, k, v, g, lengths, state.dtype):
        b = rate[:, :, start : start + q_c.shape[2]]
        wanted = b * (v_c - (k_c * gates.since_start) @ state)
        u = torch.linalg.solve_triangular(b * pairs(k_c, k_c, gates, -1), wanted, upper=False, unitriangular=True)
        y = (q_c * gates.since_start) @ state + pairs(q_c, k_c, gates, 0) @ u
        state = state * gates.whole + (k_c * gates.until_end).mT @ u
        parts.append(y * scale)
        start += q_c.shape[2]
    return joined(parts, v), state
