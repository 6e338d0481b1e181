"""The causal dot product in `torch.ops.jrt_eval`: schemas, shapes and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.causal_dot_product import reference
from jrt_eval.kernels.library import Operator


def _final(q: Tensor, v: Tensor) -> Tensor:
    return v.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=torch.float32)


def _shapes(q: Tensor, k: Tensor, v: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), _final(q, v)


def _backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, state = ctx.saved_tensors
    gq, gk, gv, g_state = causal_dot_product_backward.call(q, k, v, state, grad_y, grad_state)
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), None if state is None else g_state.to(state.dtype)


def _backward_shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    single = [x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v)]
    return *single, _final(q, v)


causal_dot_product = Operator(
    "causal_dot_product(Tensor q, Tensor k, Tensor v, Tensor? state) -> (Tensor, Tensor)",
    _shapes,
    backward=_backward,
    reference=reference.causal_dot_product,
)
causal_dot_product_backward = Operator(
    "causal_dot_product_backward(Tensor q, Tensor k, Tensor v, Tensor? state, Tensor grad_y, Tensor grad_state)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_shapes,
)
