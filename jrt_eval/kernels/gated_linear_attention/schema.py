"""Gated linear attention and the gated delta rule in `torch.ops.jrt_eval`: schemas and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    state = (v.shape[0], v.shape[2], q.shape[3], v.shape[3])
    return v.new_empty(v.shape), v.new_empty(state, dtype=torch.float32)


def _step_shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(v.shape)


gated_linear_attention = Operator(
    "gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? state, float scale, Tensor? lengths)"
    " -> (Tensor, Tensor)",
    _shapes,
)
gated_linear_attention_step = Operator(
    "gated_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor(a!) state, float scale) -> Tensor",
    _step_shapes,
)
gated_delta_rule = Operator(
    "gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor? state, float scale, Tensor? lengths)"
    " -> (Tensor, Tensor)",
    _shapes,
)
gated_delta_rule_step = Operator(
    "gated_delta_rule_step(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor(a!) state, float scale) -> Tensor",
    _step_shapes,
)
