"""Sliding-window attention in PyTorch with all blocks of all rows in one fused call, in the tensors' own dtype, on any device.

A block of queries (at least a window) attends to its own block of keys and the one before. With a free block in front of each row, the
rows form one sequence of blocks, and a block with its predecessor is a view of it; everything outside the window is masked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jrt_eval.kernels.sliding_window_attention import reference
from jrt_eval.kernels.sliding_window_attention.state import WindowState

# The kernel that takes a mask. cuDNN's does too, and builds a plan for every new shape.
FUSED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MOST_BLOCKS = 32768  # in one call: a GPU takes 65,535 in a grid's last dimension


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    batch, length, _, dim = q.shape
    if not batch * length:
        return reference.sliding_window_attention(q, k, v, window, state, lengths)
    keys, values, past, seen = reference.window_keys(k, v, window, state)
    counts = reference.token_counts(lengths, q)
    size = -(-window // 16) * 16  # at least a window; aligned, as the fused kernel likes it
    count = -(-length // size)
    behind = count * size - length

    def blocks(x: Tensor, front: int, back: int) -> Tensor:
        """(batch, tokens, heads, dim) -> (batch * (count + 1) * size, heads, dim)"""
        return F.pad(x, (0, 0, 0, 0, front, back)).flatten(0, 1)

    def pairs(x: Tensor) -> Tensor:
        """Each block behind its predecessor, (blocks, heads, 2 * size, dim); the free block takes the state's tokens."""
        return blocks(x, size - past, behind).unfold(0, 2 * size, size).transpose(2, 3)

    queries = blocks(q, 0, behind + size).unflatten(0, (-1, size))[:-1].transpose(1, 2)
    i = torch.arange(size, device=q.device)[:, None] + size
    j = torch.arange(2 * size, device=q.device)
    band = (j <= i) & (j > i - window)
    sees = band.expand(batch, count + 1, -1, -1).clone()
    sees[:, 0] &= (j >= size - seen.clamp(max=window)[:, None])[:, None]  # the free block: what the state holds
    parts = (queries, pairs(keys), pairs(values), sees.flatten(0, 1)[:-1, None])
    with sdpa_kernel(FUSED):
        ys = [
            F.scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=dim**-0.5).transpose(1, 2)
            for a, b, c, mask in zip(*(x.split(MOST_BLOCKS) for x in parts), strict=True)
        ]
    y = (ys[0] if len(ys) == 1 else torch.cat(ys)).flatten(0, 1)
    # The last block of each row is the next row's free block; the last row has none.
    y = F.pad(y, (0, 0, 0, 0, 0, size)).unflatten(0, (batch, -1))[:, :length]
    return y.contiguous(), reference.window_ring(keys, values, window, past, seen, counts)
