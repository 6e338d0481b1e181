"""The gated short convolution in PyTorch: the specification, and differentiable by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.layout import wide


def short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = wide(a.dtype)
    width = weight.shape[-1]
    kernel = weight.reshape(weight.shape[0], width).to(dtype)
    before = a.new_zeros(a.shape[0], width - 1, a.shape[2], dtype=dtype) if state is None else state.to(dtype)
    x = torch.cat([before, a.to(dtype)], 1)
    length = a.shape[1]
    z = sum((x[:, w : w + length] * kernel[:, w] for w in range(1, width)), x[:, :length] * kernel[:, 0])
    if bias is not None:
        z = z + bias.to(dtype)
    if lengths is None:
        last = x[:, length:].clone()
    else:
        at = lengths.to(torch.int64)[:, None] + torch.arange(width - 1, device=a.device)
        last = x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return (F.silu(z) * b.to(dtype)).to(a.dtype), last


@torch.no_grad()
def short_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    dtype = wide(a.dtype)
    kernel = weight.reshape(weight.shape[0], weight.shape[-1]).to(dtype)
    x = torch.cat([state.to(dtype), a[:, None].to(dtype)], 1)  # (batch, width, channels)
    z = (x * kernel.T).sum(1)
    if bias is not None:
        z = z + bias.to(dtype)
    state.copy_(x[:, 1:])
    return (F.silu(z) * b.to(dtype)).to(a.dtype)
