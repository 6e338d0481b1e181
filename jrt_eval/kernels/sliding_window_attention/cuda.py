"""Sliding-window attention on a GPU, by PyTorch's fused attention.

16-bit tensors at the start of a sequence use FlashAttention-2, whose windows PyTorch's operator accepts although its public function
does not. All others use the kernel that takes a mask (`parallel`).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from jrt_eval.kernels.sliding_window_attention import parallel, reference
from jrt_eval.kernels.sliding_window_attention.parallel import FUSED
from jrt_eval.kernels.sliding_window_attention.state import WindowState


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    if state is not None or not v.numel() or not _flash(q, v):
        return parallel.sliding_window_attention(q, k, v, window, state, lengths)
    seen = torch.zeros(v.shape[:1], dtype=torch.int64, device=v.device)
    ring = reference.window_ring(k, v, window, 0, seen, reference.token_counts(lengths, q))
    return _flash_attention(q, k, v, window), ring


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
def sliding_window_attention_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    held = reference.window_write(k, v, state)
    with sdpa_kernel(FUSED):
        y = F.scaled_dot_product_attention(
            q[:, :, None],
            state.k.transpose(1, 2),
            state.v.transpose(1, 2),
            attn_mask=held[:, None, None],
            scale=q.shape[-1] ** -0.5,
        )
    return y[:, :, 0]
