"""From tensors to what the compiled modules take: numbers for dtypes, addresses, and states in the form that the kernels read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# A convolution over (batch, length, channels): a, b, weight, bias, initial state, final state (written), lengths -> y.
Conv = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None], Tensor]


def single(x: Tensor | None) -> Tensor | None:
    """float32 and contiguous."""
    return None if x is None else x.to(torch.float32).contiguous()


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def gated_conv(
    conv: Conv, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y and the final state (batch, width - 1, channels), float32."""
    last = a.new_empty((a.shape[0], weight.shape[-1] - 1, a.shape[2]), dtype=torch.float32)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    return conv(a, b, weight, bias, single(state), last, lengths), last


def gated_conv_step(conv: Conv, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
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
