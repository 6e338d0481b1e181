"""The short convolution in `torch.ops.jrt_eval`: schemas and shapes. The gradient is the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(x: Tensor, gate: Any, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    past = (x.shape[0], weight.shape[-1] - 1, x.shape[2])
    return x.new_empty(x.shape), x.new_empty(past, dtype=torch.float32)


def _step_shapes(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


short_conv = Operator(
    "short_conv(Tensor x, Tensor? gate, Tensor weight, Tensor? bias, Tensor? state, Tensor? lengths, bool silu)"
    " -> (Tensor, Tensor)",
    _shapes,
)
short_conv_step = Operator(
    "short_conv_step(Tensor x, Tensor? gate, Tensor weight, Tensor? bias, Tensor(a!) state, bool silu) -> Tensor",
    _step_shapes,
)
