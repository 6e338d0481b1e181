"""The residual sum and its root-mean-square norm as one Triton kernel, float32 inside, without gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_rms_norm(r, y, weight, total, x, width, eps, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * width
    c = tl.arange(0, BLOCK)
    inside = c < width
    a = tl.load(r + at + c, mask=inside, other=0.0).to(tl.float32)
    a += tl.load(y + at + c, mask=inside, other=0.0).to(tl.float32)
    rounded = a.to(total.dtype.element_ty)
    tl.store(total + at + c, rounded, mask=inside)
    a = rounded.to(tl.float32)
    a = a / tl.sqrt(tl.sum(a * a, 0) / width + eps) * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + at + c, a.to(x.dtype.element_ty), mask=inside)


def add_rms_norm(r: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r, y = r.contiguous(), y.contiguous()
    total, x = torch.empty_like(r), torch.empty_like(r, dtype=weight.dtype)
    width = r.shape[-1]
    block, warps = triton.next_power_of_2(width), 8 if width > 2048 else 4
    if r.numel():
        with torch.cuda.device_of(r):
            _add_rms_norm[(r.numel() // width,)](r, y, weight, total, x, width, eps, BLOCK=block, num_warps=warps)
    return total, x
