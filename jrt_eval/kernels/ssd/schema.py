"""The recurrence of Mamba-2 in `torch.ops.jrt_eval`: schemas and shapes. The gradient is the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, _length, heads, dim = x.shape
    return x.new_empty(x.shape), x.new_empty((batch, heads, dim, b.shape[3]), dtype=torch.float32)


def _step_shapes(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


ssd = Operator(
    "ssd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias, Tensor? state,"
    " Tensor? lengths, bool softplus, float dt_min, float dt_max) -> (Tensor, Tensor)",
    _shapes,
)
ssd_step = Operator(
    "ssd_step(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias, Tensor(a!) state,"
    " bool softplus, float dt_min, float dt_max) -> Tensor",
    _step_shapes,
)
