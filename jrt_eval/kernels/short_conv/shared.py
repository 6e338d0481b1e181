"""What the backends of the short convolution share: states in the form that the kernels read, and the form with gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.optional import triton_module
from jrt_eval.kernels.short_conv import reference

# A convolution over (batch, length, channels): x, gate, weight, bias, initial state, final state (written), lengths, silu -> y.
Conv = Callable[[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, bool], Tensor]


def prefill(
    conv: Conv,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """y and the final state (batch, width - 1, channels), float32."""
    last = x.new_empty((x.shape[0], weight.shape[-1] - 1, x.shape[2]), dtype=torch.float32)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    return conv(x, gate, weight, bias, single(state), last, lengths, silu), last


def step(
    conv: Conv, x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> Tensor:
    """y of one token, (batch, channels); the state is updated in place."""
    gate = None if gate is None else gate[:, None]
    if state.dtype == torch.float32:
        y = conv(x[:, None], gate, weight, bias, state, state, None, silu)
        if torch.is_grad_enabled():
            increment_version(state)
    else:
        wide = state.to(torch.float32)
        y = conv(x[:, None], gate, weight, bias, wide, wide, None, silu)
        state.copy_(wide)
    return y[:, 0]


def differentiable(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The convolution on a GPU with gradients, by Triton's kernels where they have its form."""
    simple = gate is None and silu and bias is not None and state is None and lengths is None and weight.dim() == 3
    single_precision = x.dtype == weight.dtype == torch.float32
    kernels = triton_module("jrt_eval.kernels.short_conv.triton_training")
    if not simple or not single_precision or kernels is None or torch.compiler.is_compiling() or x.numel() == 0:
        return reference.short_conv(x, gate, weight, bias, state, lengths, silu)
    with torch.cuda.device_of(x):
        y = kernels.TritonConv.apply(x, weight, bias)
    past, length = weight.shape[-1] - 1, x.shape[1]
    last = torch.nn.functional.pad(x, (0, 0, max(0, past - length), 0))
    return y, last[:, last.shape[1] - past :].clone()
