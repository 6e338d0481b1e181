"""The short convolution on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import DTYPES, address, learns
from jrt_eval.kernels.short_conv import reference, schema
from jrt_eval.kernels.short_conv.shared import prefill, step

_c: Any = compiled.module()
_threads = torch.get_num_threads
_compiling = torch.compiler.is_compiling


def _conv(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state_in: Tensor | None,
    state_out: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    batch, length, channels = a.shape
    y = a.new_empty((batch, length, channels))
    if weight.dtype != a.dtype or not weight.is_contiguous():
        weight = weight.to(a.dtype).contiguous()
    if bias is not None and (bias.dtype != a.dtype or not bias.is_contiguous()):
        bias = bias.to(a.dtype).contiguous()
    _c.conv(
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        y.data_ptr(),
        weight.data_ptr(),
        address(bias),
        address(state_in),
        state_out.data_ptr(),
        address(lengths),
        batch,
        length,
        channels,
        weight.shape[-1],
        DTYPES[a.dtype],
        _threads(),
    )
    return y


def _short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    return prefill(_conv, a, b, weight, bias, state, lengths)


def _short_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    return step(_conv, a.resolve_neg(), b.resolve_neg(), weight, bias, state)


schema.short_conv.implement("CPU", _short_conv)
schema.short_conv_step.implement("CPU", _short_conv_step)


def short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    if learns(a, b, weight, bias, state):
        return reference.short_conv(a, b, weight, bias, state, lengths)
    y, last = schema.short_conv.call(a, b, weight, bias, state, lengths)
    return y, last


def short_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    y: Tensor = (schema.short_conv_step.call if _compiling() else _short_conv_step)(a, b, weight, bias, state)
    return y
