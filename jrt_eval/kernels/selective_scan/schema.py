"""The selective scan in `torch.ops.jrt_eval`: schemas and shapes. Gradients are not computed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(x: Tensor, dt: Tensor, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], *a.shape), dtype=torch.float32)


def _step_shapes(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


selective_scan = Operator(
    "selective_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias, Tensor? state,"
    " Tensor? lengths, bool softplus) -> (Tensor, Tensor)",
    _shapes,
)
selective_scan_step = Operator(
    "selective_scan_step(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias,"
    " Tensor(a!) state, bool softplus) -> Tensor",
    _step_shapes,
)
