"""Root-mean-square norms as Triton kernels, float32 inside, without gradients."""

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


@triton.jit
def _grouped_rms_norm(x, weight, y, width, groups, eps, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < width
    a = tl.load(x + group * width + c, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + group % groups * width + c, mask=inside, other=0.0).to(tl.float32)
    a = a / tl.sqrt(tl.sum(a * a, 0) / width + eps) * scale
    tl.store(y + group * width + c, a.to(y.dtype.element_ty), mask=inside)


def grouped_rms_norm(x: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1] // groups
    block, warps = triton.next_power_of_2(width), 8 if width > 2048 else 4
    if x.numel():
        with torch.cuda.device_of(x):
            _grouped_rms_norm[(x.numel() // width,)](
                x, weight.contiguous(), y, width, groups, eps, BLOCK=block, num_warps=warps
            )
    return y
