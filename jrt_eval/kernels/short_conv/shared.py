"""The part of the short convolution that the CPU and the CUDA kernels share: states in the form that the kernels read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import single

# A convolution over (batch, length, channels): a, b, weight, bias, initial state, final state (written), lengths -> y.
Conv = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None], Tensor]


def prefill(
    conv: Conv, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y and the final state (batch, width - 1, channels), float32."""
    last = a.new_empty((a.shape[0], weight.shape[-1] - 1, a.shape[2]), dtype=torch.float32)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    return conv(a, b, weight, bias, single(state), last, lengths), last


def step(conv: Conv, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    """y of one token, (batch, channels); the state is updated in place."""
    if state.dtype == torch.float32:
        y = conv(a[:, None], b[:, None], weight, bias, state, state, None)
        if torch.is_grad_enabled():
            increment_version(state)
    else:
        wide = state.to(torch.float32)
        y = conv(a[:, None], b[:, None], weight, bias, wide, wide, None)
        state.copy_(wide)
    return y[:, 0]
