"""The short convolution on a GPU, by the CUDA kernels; these always have a SiLU and a gate."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns
from jrt_eval.kernels.device import stream
from jrt_eval.kernels.library import decode_step
from jrt_eval.kernels.optional import triton_module
from jrt_eval.kernels.short_conv import reference, schema
from jrt_eval.kernels.short_conv.shared import differentiable, prefill, step

_c: Any = compiled.cuda_module()
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
    assert silu and gate is not None
    batch, length, channels = x.shape
    y = x.new_empty((batch, length, channels))
    if batch * channels == 0:
        return y
    x, gate = x.resolve_neg(), gate.resolve_neg()
    weight = weight.to(x.dtype).contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    lengths = (
        None if lengths is None else lengths.clamp(0, length)
    )  # their values are on the GPU: nothing has looked at them
    with torch.cuda.device(x.device):
        _c.short_conv(
            x=x, gate=gate, weight=weight, bias=bias, state=state_in, lengths=lengths, y=y, state_out=state_out,
            stream=stream(x),
        )  # fmt: skip
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
    if gate is None or not silu:
        y, last = _ungated().prefill(x, gate, weight, bias, state, lengths, silu)
        return y, last
    return prefill(_conv, x, gate, weight, bias, state, lengths, silu)


def _short_conv_step(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> Tensor:
    if gate is None or not silu:
        y: Tensor = _ungated().step(x, gate, weight, bias, state, silu)
        return y
    return step(_conv, x, gate, weight, bias, state, silu)


@cache
def _ungated() -> Any:
    """What computes the forms that the CUDA kernels lack."""
    return triton_module("jrt_eval.kernels.short_conv.triton") or SimpleNamespace(
        prefill=reference.short_conv, step=reference.short_conv_step
    )


schema.short_conv.implement("CUDA", _short_conv)
schema.short_conv_step.implement("CUDA", _short_conv_step)


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
        return differentiable(x, gate, weight, bias, state, lengths, silu)
    y, last = (schema.short_conv.call if _compiling() else _short_conv)(x, gate, weight, bias, state, lengths, silu)
    return y, last


short_conv_step = decode_step(schema.short_conv_step, _short_conv_step, slice(4, 5))
