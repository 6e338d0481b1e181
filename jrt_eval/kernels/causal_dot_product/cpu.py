"""The causal dot product on the CPU, by the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels.causal_dot_product import schema
from jrt_eval.kernels.taylor_linear_attention.cpu import _linear, _linear_backward


def _prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, kv, _, _ = _linear(q, k, v, state, None, None, None, False)
    return y, kv


def _backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gq, gk, gv, g_state, _ = _linear_backward(q, k, v, state, None, None, None, None, grad_y, grad_state, None)
    return gq, gk, gv, g_state


schema.causal_dot_product.implement("CPU", _prefill)
schema.causal_dot_product_backward.implement("CPU", _backward)


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, final = schema.causal_dot_product.call(q, k, v, state)
    return y, final
