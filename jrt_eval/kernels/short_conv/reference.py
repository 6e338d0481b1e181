"""The short convolution in PyTorch: the specification, and differentiable by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.layout import wide


def short_conv(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    dtype = wide(x.dtype)
    width = weight.shape[-1]
    kernel = weight.reshape(weight.shape[0], width).to(dtype)
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2], dtype=dtype) if state is None else state.to(dtype)
    inputs = torch.cat([before, x.to(dtype)], 1)
    length = x.shape[1]
    z = sum((inputs[:, w : w + length] * kernel[:, w] for w in range(1, width)), inputs[:, :length] * kernel[:, 0])
    if bias is not None:
        z = z + bias.to(dtype)
    if lengths is None:
        last = inputs[:, length:].clone()
    else:
        at = lengths.to(torch.int64)[:, None] + torch.arange(width - 1, device=x.device)
        last = inputs.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return _finished(z, gate, silu).to(x.dtype), last


def _finished(z: Tensor, gate: Tensor | None, silu: bool) -> Tensor:
    z = F.silu(z) if silu else z
    return z if gate is None else z * gate.to(z.dtype)


@torch.no_grad()
def short_conv_step(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> Tensor:
    dtype = wide(x.dtype)
    kernel = weight.reshape(weight.shape[0], weight.shape[-1]).to(dtype)
    inputs = torch.cat([state.to(dtype), x[:, None].to(dtype)], 1)  # (batch, width, channels)
    z = (inputs * kernel.T).sum(1)
    if bias is not None:
        z = z + bias.to(dtype)
    state.copy_(inputs[:, 1:])
    return _finished(z, gate, silu).to(x.dtype)
