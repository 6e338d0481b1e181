"""What stands between a model's matrix products, as Triton kernels: each tensor is read once and written once.

The arithmetic is that of `layers` in float32, rounded once at the end. For inference: nothing here is differentiable.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(r, y, weight, total, x, width, eps, BLOCK: tl.constexpr):
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


def add_norm(r: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r + y in r's dtype, and its root-mean-square norm in the weight's."""
    r, y = r.contiguous(), y.contiguous()
    total, x = torch.empty_like(r), torch.empty_like(r, dtype=weight.dtype)
    width = r.shape[-1]
    if r.numel():
        _add_norm[(r.numel() // width,)](
            r, y, weight, total, x, width, eps, BLOCK=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4
        )
    return total, x


@triton.jit
def _swiglu(h, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    up = tl.load(h + row * 2 * width + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + row * 2 * width + width + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + c, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def swiglu(h: Tensor) -> Tensor:
    """silu(gate) * up, h (..., 2 * width) holding up in its first half and the gate in its second."""
    h = h.contiguous()
    width = h.shape[-1] // 2
    out = h.new_empty(*h.shape[:-1], width)
    if h.numel():
        _swiglu[(out.numel() // width, triton.cdiv(width, 1024))](h, out, width, BLOCK=1024)
    return out


@triton.jit
def _rotate(x, cos, sin, out, step, heads, dim, n, HEADS: tl.constexpr, DIM: tl.constexpr):
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (..., heads, dim), cos and sin (..., frequencies) float32."""
    heads, dim = x.shape[-2:]
    flat = x.reshape(-1, heads, dim)
    if flat.stride(2) != 1 or flat.stride(1) != dim:
        flat = flat.contiguous()
    out = x.new_empty(x.shape)
    if x.numel():
        _rotate[(flat.shape[0],)](
            flat, cos.contiguous(), sin.contiguous(), out, flat.stride(0), heads, dim, cos.shape[-1],
            HEADS=triton.next_power_of_2(heads), DIM=triton.next_power_of_2(dim),
        )  # fmt: skip
    return out
