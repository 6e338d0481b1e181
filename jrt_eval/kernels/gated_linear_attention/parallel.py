"""`gated_linear_attention` in PyTorch, a chunk of tokens at a time: matrix products on any device, with gradients.

Within a chunk that starts from the state S, with G_i the sum of the gates up to token i:

    o_i = scale [ (q_i exp G_i)^T S + sum_{j<=i} (q_i . k_j exp(G_i - G_j)) v_j ]

exp(G_i - G_j) is computed as one number, at most 1 for gates of at most 0, and never as a quotient that could overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.gated_linear_attention.reference import for_each_head, initial_state

CHUNK = 64
SMALLEST_GATE = -88.0  # exp of it is the smallest float32; -inf would make differences of sums NaN
CHUNK_PER_CHANNEL = 16  # with a gate per key channel a chunk needs chunk x chunk x key dim numbers


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `jrt_eval.kernels.gated_linear_attention`."""
    state, parts = initial_state(q, v, state), []
    for q_c, k_c, v_c, gates in chunks(q, k, v, g, lengths, state.dtype):
        y = (q_c * gates.since_start) @ state + pairs(q_c, k_c, gates, 0) @ v_c
        state = state * gates.whole + (k_c * gates.until_end).mT @ v_c
        parts.append(y * scale)
    return joined(parts, v), state


class Gates:
    """The decays inside one chunk, from g (batch, heads, chunk, 1 or key dim), the log decay of each token."""

    def __init__(self, g: Tensor) -> None:
        self.total = g.cumsum(-2)
        self.since_start = self.total.exp()
        self.until_end = (self.total[..., -1:, :] - self.total).exp()
        self.whole = self.total[..., -1, :, None].exp()  # (batch, heads, 1 or key dim, 1)


def pairs(a: Tensor, b: Tensor, gates: Gates, diagonal: int) -> Tensor:
    """sum_c a_ic b_jc exp(G_ic - G_jc) for j <= i + diagonal, 0 elsewhere: (batch, heads, chunk, chunk)."""
    size = a.shape[-2]
    seen = torch.ones(size, size, dtype=torch.bool, device=a.device).tril(diagonal)
    if gates.total.shape[-1] == 1:
        total = gates.total[..., 0]
        decay = (total[..., :, None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()
        return torch.where(seen, (a @ b.mT) * decay, 0.0)
    difference = gates.total[..., :, None, :] - gates.total[..., None, :, :]
    decay = difference.masked_fill(~seen[..., None], -torch.inf).exp()
    product = a[..., :, None, :] * b[..., None, :, :] * decay
    return torch.where(seen, product.sum(-1), 0.0)


def chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, lengths: Tensor | None, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor, Gates]]:
    """q, k, v (batch, heads, chunk, ...) and gates of each chunk; tokens beyond a row's length neither add nor decay."""
    length = q.shape[1]
    q, k = (for_each_head(x, v) for x in (q, k))
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    if g is None:
        g = q.new_zeros(*q.shape[:3], 1)
    else:
        g = g.to(dtype).transpose(1, 2)
        g = (g[..., None] if g.dim() == 3 else g).clamp_min(SMALLEST_GATE)
    if lengths is not None:
        valid = (torch.arange(length, device=q.device) < lengths[:, None])[:, None, :, None]
        q, k, v, g = (torch.where(valid, x, 0.0) for x in (q, k, v, g))
    size = CHUNK if g.shape[-1] == 1 else CHUNK_PER_CHANNEL
    at = range(0, length, size)
    return [
        (q[:, :, s : s + size], k[:, :, s : s + size], v[:, :, s : s + size], Gates(g[:, :, s : s + size])) for s in at
    ]


def joined(parts: list[Tensor], v: Tensor) -> Tensor:
    """The chunks' outputs (batch, heads, chunk, head dim) as one (batch, length, heads, head dim) in v's dtype."""
    if not parts:
        return v.new_zeros(v.shape)
    return torch.cat(parts, 2).transpose(1, 2).to(v.dtype)
