"""The short convolution on the CPU, by the compiled kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, step_on_views
from jrt_eval.kernels.short_conv import reference, schema
from jrt_eval.kernels.short_conv.shared import prefill, step

_c: Any = compiled.module()
_threads = torch.get_num_threads
_compiling = torch.compiler.is_compiling


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


def short_conv(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    if learns(x, gate, weight, bias, state):
        return reference.short_conv(x, gate, weight, bias, state, lengths, silu)
    y, last = schema.short_conv.call(x, gate, weight, bias, state, lengths, silu)
    return y, last


def short_conv_step(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> Tensor:
    if _compiling():
        y: Tensor = schema.short_conv_step.call(x, gate, weight, bias, state, silu)
        return y
    run = partial(_short_conv_step, silu=silu)
    return step_on_views(run, slice(4, 5), x, gate, weight, bias, state)
