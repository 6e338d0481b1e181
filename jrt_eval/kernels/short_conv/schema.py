"""The short convolution in `torch.ops.jrt_eval`: schemas and shapes. The gradient is the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(a: Tensor, b: Tensor, weight: Tensor, bias: Any, state: Any, lengths: Any) -> tuple[Tensor, Tensor]:
    past = (a.shape[0], weight.shape[-1] - 1, a.shape[2])
    return a.new_empty(a.shape), a.new_empty(past, dtype=torch.float32)


def _step_shapes(a: Tensor, b: Tensor, weight: Tensor, bias: Any, state: Tensor) -> Tensor:
    return a.new_empty(a.shape)


short_conv = Operator(
    "short_conv(Tensor a, Tensor b, Tensor weight, Tensor? bias, Tensor? state, Tensor? lengths) -> (Tensor, Tensor)",
    _shapes,
)
short_conv_step = Operator(
    "short_conv_step(Tensor a, Tensor b, Tensor weight, Tensor? bias, Tensor(a!) state) -> Tensor", _step_shapes
)
