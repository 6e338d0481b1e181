"""The short convolution on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.library import decode_step, kernel_or_reference
from jrt_eval.kernels.short_conv import reference, schema
from jrt_eval.kernels.short_conv.shared import prefill, step

_c: Any = compiled.module()
_threads = torch.get_num_threads


def _conv(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state_in: Tensor | None,
    state_out: Tensor,
    lengths: Tensor | None,
    silu: bool,
) -> Tensor:
    y = x.new_empty(x.shape)
    if weight.dtype != x.dtype or not weight.is_contiguous():
        weight = weight.to(x.dtype).contiguous()
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        bias = bias.to(x.dtype).contiguous()
    _c.short_conv(x, gate, weight, bias, state_in, lengths, silu, y, state_out, _threads())
    return y


def _short_conv(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    return prefill(_conv, x, gate, weight, bias, state, lengths, silu)


def _short_conv_step(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> Tensor:
    return step(_conv, x, gate, weight, bias, state, silu)


schema.short_conv.implement("CPU", _short_conv)
schema.short_conv_step.implement("CPU", _short_conv_step)

short_conv = kernel_or_reference(schema.short_conv, reference.short_conv)
short_conv_step = decode_step(schema.short_conv_step, _short_conv_step, slice(4, 5))
