"""The selective scan of Mamba (arXiv 2312.00752, section 3.2) in forms that can be trained.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t . h_t + D x_t

x, dt: (batch, length, channels); A: (channels, states), negative; B, C: (batch, length, states); D: (channels,).
transformers' own forward walks over the tokens one by one in Python. `selective_scan` walks over the tokens of a chunk
with all chunks at once, on any device; on CUDA a Triton kernel keeps h in registers instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.optional import triton_module

CHUNK = 32
TRITON = "jrt_eval.kernels.selective_scan.triton"


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y (batch, length, channels) in x's dtype; h is float32 (float64 for float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype = x.dtype
    x, dt, a, b, c, d = (t.to(wide) for t in (x, dt, a, b, c, d))
    if x.device.type == "cuda" and wide == torch.float32 and (kernels := triton_module(TRITON)) is not None:
        y = _fused(kernels, x, dt, a, b, c)
    else:
        decay = torch.exp(dt[..., None] * a)  # (batch, length, channels, states)
        drive = (dt * x)[..., None] * b[:, :, None]
        y = (_recurrence(decay, drive) * c[:, :, None]).sum(-1)
    return (y + d * x).to(dtype)


@torch.compiler.disable  # torch.compile leaves these kernels as they are
def _fused(kernels: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y: Tensor = kernels.TritonScan.apply(x, dt, a, b, c)
    return y


def _recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t along dimension 1, from h_0 = 0; both (batch, length, ...)."""
    h: Tensor = _Recurrence.apply(decay, drive)  # type: ignore[no-untyped-call]
    return h


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        h = _scan(decay, drive)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        decay, h = ctx.saved_tensors
        # The adjoint runs backwards: g_t = grad_t + decay_{t+1} g_{t+1}.
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        g = _scan(later.flip(1), grad.flip(1)).flip(1)
        earlier = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return g * earlier, g


def _scan(decay: Tensor, drive: Tensor) -> Tensor:
    length = decay.shape[1]
    count = -(-length // CHUNK)
    pad = [0, 0] * (decay.dim() - 2) + [0, count * CHUNK - length]
    decay = F.pad(decay, pad).unflatten(1, (count, CHUNK))
    drive = F.pad(drive, pad).unflatten(1, (count, CHUNK))
    h, product = torch.empty_like(drive), torch.empty_like(drive)
    h[:, :, 0], product[:, :, 0] = drive[:, :, 0], decay[:, :, 0]
    for t in range(1, CHUNK):
        torch.addcmul(drive[:, :, t], decay[:, :, t], h[:, :, t - 1], out=h[:, :, t])
        torch.mul(product[:, :, t - 1], decay[:, :, t], out=product[:, :, t])
    carry = torch.zeros_like(h[:, 0, 0])
    carries = []
    for chunk in range(count):
        carries.append(carry)
        carry = h[:, chunk, -1] + product[:, chunk, -1] * carry
    h.addcmul_(product, torch.stack(carries, 1)[:, :, None])
    return h.flatten(1, 2)[:, :length]
