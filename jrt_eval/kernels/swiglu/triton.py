"""SwiGLU's gate as one Triton kernel, float32 inside, without gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _swiglu(h, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    up = tl.load(h + row * 2 * width + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + row * 2 * width + width + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + c, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def swiglu(h: Tensor) -> Tensor:
    h = h.contiguous()
    width = h.shape[-1] // 2
    out = h.new_empty(*h.shape[:-1], width)
    if h.numel():
        with torch.cuda.device_of(h):
            _swiglu[(out.numel() // width, triton.cdiv(width, 1024))](h, out, width, BLOCK=1024)
    return out
