"""Sliding-window attention in PyTorch, block by block: the specification, and differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.layout import heads_first, weighted_sum, wide
from jrt_eval.kernels.sliding_window_attention.state import WindowState

CHUNK = 64


def token_counts(lengths: Tensor | None, like: Tensor) -> Tensor:
    if lengths is None:
        return torch.full((like.shape[0],), like.shape[1], dtype=torch.int64, device=like.device)
    return lengths.to(device=like.device, dtype=torch.int64)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (batch, tokens, heads, dim) at index (batch, n), zeros where the index is negative."""
    at = index.clamp(min=0)[..., None, None].expand(-1, -1, x.shape[2], x.shape[3])
    return x.gather(1, at).where((index >= 0)[..., None, None], 0)


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    length = q.shape[1]
    dtype = wide(v.dtype)
    keys, values, past, seen = window_keys(k, v, window, state)
    y = []
    block = max(window // 2, CHUNK)
    for start in range(0, length, block):
        stop = min(start + block, length)
        low = max(start + past - window + 1, 0)
        i = torch.arange(start + past, stop + past, device=q.device)[:, None]
        j = torch.arange(low, stop + past, device=q.device)[None, :]
        sees = ((j <= i) & (j > i - window))[None] & (j[None] >= (past - seen)[:, None, None])
        qc = heads_first(q[:, start:stop], dtype)
        kc, vc = (heads_first(x[:, low : stop + past], dtype) for x in (keys, values))
        y.append(_attend(qc, kc, vc, sees[:, None]))
    out = torch.cat(y, 2).transpose(1, 2).to(v.dtype) if y else v.clone()
    return out, window_ring(keys, values, window, past, seen, token_counts(lengths, q))


def _attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Softmax attention over the keys that `sees` (batch, 1, queries, keys) marks; tensors (batch, heads, tokens, dim).

    Written out: PyTorch's fused attention has no second or forward-mode derivative, and spreads NaN from masked keys and values.
    """
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~sees, -torch.inf)
    return weighted_sum(scores.softmax(-1), v, sees)


def window_keys(k: Tensor, v: Tensor, window: int, state: WindowState | None) -> tuple[Tensor, Tensor, int, Tensor]:
    """Keys and values with those of the state in front, oldest first: how many these are, and how many of them hold tokens."""
    if state is None:
        return k, v, 0, torch.zeros(k.shape[:1], dtype=torch.int64, device=k.device)
    order = state.length[:, None] - window + torch.arange(window, device=k.device)  # the last `window` tokens
    order = torch.where(order >= 0, order % window, -1)
    before_k, before_v = _take(state.k.to(k.dtype), order), _take(state.v.to(v.dtype), order)
    return torch.cat([before_k, k], 1), torch.cat([before_v, v], 1), window, state.length


def window_ring(keys: Tensor, values: Tensor, window: int, past: int, seen: Tensor, counts: Tensor) -> WindowState:
    """The state after `counts` more tokens of each row; the others are as `window_keys` returns them."""
    # Slot s holds the latest token t with t % window == s; among `keys` that is number t - seen + past.
    total = seen + counts
    token = total[:, None] - 1 - (total[:, None] - 1 - torch.arange(window, device=keys.device)) % window
    token = torch.where(token >= 0, token - seen[:, None] + past, -1)
    if keys.shape[1] == 0:
        ring = (keys.shape[0], window, *keys.shape[2:])
        return WindowState(keys.new_zeros(ring), values.new_zeros(ring), total)
    return WindowState(_take(keys, token), _take(values, token), total)


def window_write(k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    """Put one token per row into the ring; which of its slots (batch, window) hold tokens then."""
    window = state.k.shape[1]
    slot = (state.length % window)[:, None, None, None].expand(-1, 1, *k.shape[1:])
    state.k.scatter_(1, slot, k[:, None].to(state.k.dtype))
    state.v.scatter_(1, slot, v[:, None].to(state.v.dtype))
    state.length.add_(1)
    return torch.arange(window, device=k.device) < state.length[:, None]


@torch.no_grad()
def sliding_window_attention_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    dtype = wide(v.dtype)
    held = window_write(k, v, state)
    y = _attend(q[:, :, None].to(dtype), heads_first(state.k, dtype), heads_first(state.v, dtype), held[:, None, None])
    return y[:, :, 0].to(v.dtype)
