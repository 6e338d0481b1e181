"""Sliding-window attention in `torch.ops.jrt_eval`: schemas and shapes. The gradient is the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, window: int, ring_k: Any, ring_v: Any, seen: Any, lengths: Any
) -> tuple[Tensor, ...]:
    ring = (v.shape[0], window, *v.shape[2:])
    return v.new_empty(v.shape), k.new_empty(ring), v.new_empty(ring), v.new_empty(v.shape[:1], dtype=torch.int64)


def _step_shapes(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, seen: Tensor) -> Tensor:
    return v.new_empty(v.shape)


sliding_window_attention = Operator(
    "sliding_window_attention(Tensor q, Tensor k, Tensor v, int window, Tensor? ring_k, Tensor? ring_v, Tensor? seen,"
    " Tensor? lengths) -> (Tensor, Tensor, Tensor, Tensor)",
    _shapes,
)
sliding_window_attention_step = Operator(
    "sliding_window_attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!) ring_k, Tensor(b!) ring_v, Tensor(c!) seen)"
    " -> Tensor",
    _step_shapes,
)
