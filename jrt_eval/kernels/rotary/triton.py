"""Rotary embedding as one Triton kernel, float32 inside, without gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotary(x, cos, sin, out, step, heads, dim, n, HEADS: tl.constexpr, DIM: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    h, c = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    inside = (h < heads) & (c < dim)
    turns = c < 2 * n
    angle = tl.where(c < n, c, c - n)
    across = tl.where(c < n, c + n, c - n)
    mine = tl.load(x + token * step + h * dim + c, mask=inside, other=0.0).to(tl.float32)
    theirs = tl.load(x + token * step + h * dim + across, mask=inside & turns, other=0.0).to(tl.float32)
    cosine = tl.load(cos + token * n + angle, mask=turns, other=1.0)
    sine = tl.load(sin + token * n + angle, mask=turns, other=0.0)
    turned = mine * cosine + tl.where(c < n, -theirs, theirs) * sine
    tl.store(out + (token * heads + h) * dim + c, turned.to(out.dtype.element_ty), mask=inside)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads, dim = x.shape[-2:]
    flat = x.reshape(-1, heads, dim)
    if flat.stride(2) != 1 or flat.stride(1) != dim:
        flat = flat.contiguous()
    out = x.new_empty(x.shape)
    if x.numel():
        heads_block, dim_block = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
        cos, sin = cos.contiguous(), sin.contiguous()
        with torch.cuda.device_of(x):
            _rotary[(flat.shape[0],)](
                flat, cos, sin, out, flat.stride(0), heads, dim, cos.shape[-1], HEADS=heads_block, DIM=dim_block
            )
    return out
