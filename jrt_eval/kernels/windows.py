"""Sliding windows as a GPU wants them: one call of PyTorch's fused attention, in the tensors' own dtype.

16-bit tensors at the start of a sequence go to FlashAttention-2, which knows windows; PyTorch's public face does not say so, its
operator does. All others go to the kernel that takes a mask, all blocks of all rows at once: a block of queries (at least a window)
sees its own block of keys and the one before. With a free block in front of each row, rows lie behind each other in memory as one
sequence of blocks, and block and predecessor are a view of it. What else that view shows is masked.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jrt_eval.kernels import reference
from jrt_eval.kernels.states import WindowState

# The kernel that takes a mask. cuDNN's does too, and builds a plan for every new shape.
_FUSED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MOST_BLOCKS = 32768  # in one call: a GPU takes 65,535 in a grid's last dimension


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    batch, length, _, dim = q.shape
    if not batch * length:
        return reference.sliding_window_attention(q, k, v, window, state, lengths)
    keys, values, past, seen = reference.window_keys(k, v, window, state)
    counts = reference.token_counts(lengths, q)
    if state is None and _flash(q, v):
        y = _flash_attention(q, k, v, window)
        return y, reference.window_ring(keys, values, window, past, seen, counts)
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
    with sdpa_kernel(_FUSED):
        ys = [
            F.scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=dim**-0.5).transpose(1, 2)
            for a, b, c, mask in zip(*(x.split(MOST_BLOCKS) for x in parts), strict=True)
        ]
    y = (ys[0] if len(ys) == 1 else torch.cat(ys)).flatten(0, 1)
    # The last block of each row but the last is nobody's; the very last does not exist.
    y = F.pad(y, (0, 0, 0, 0, 0, size)).unflatten(0, (batch, -1))[:, :length]
    return y.contiguous(), reference.window_ring(keys, values, window, past, seen, counts)


@cache
def _flash_has_windows() -> bool:
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    names = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    return "window_size_left" in names


def _flash(q: Tensor, v: Tensor) -> bool:
    """Whether FlashAttention-2 takes these."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16) or q.shape != v.shape:
        return False
    dim = q.shape[-1]
    return dim % 8 == 0 and dim <= 256 and torch.cuda.get_device_capability(q.device) >= (8, 0) and _flash_has_windows()


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    length, dim = q.shape[1], q.shape[3]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    y: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, length, length, 0.0, True, False,
        scale=dim**-0.5, window_size_left=window - 1, window_size_right=0,
    )[0]  # fmt: skip
    return y


@torch.no_grad()
def sliding_window_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    held = reference.window_write(k, v, state)
    with sdpa_kernel(_FUSED):
        y = F.scaled_dot_product_attention(
            q[:, :, None],
            state.k.transpose(1, 2),
            state.v.transpose(1, 2),
            attn_mask=held[:, None, None],
            scale=q.shape[-1] ** -0.5,
        )
    return y[:, :, 0]
