"""The causal dot product on a GPU, by the exact CUDA kernel; its gradient is PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.arguments import learns
from jrt_eval.kernels.causal_dot_product import reference, schema
from jrt_eval.kernels.causal_dot_product.backward import causal_dot_product_backward
from jrt_eval.kernels.taylor_linear_attention.cuda import _linear, fits

_compiling = torch.compiler.is_compiling


def _prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, kv, _, _ = _linear(q, k, v, state, None, None, None, False, False)
    return y, kv


def _backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, ...]:
    return causal_dot_product_backward(q, k, v, state, grad_y, grad_state)


schema.causal_dot_product.implement("CUDA", _prefill)
schema.causal_dot_product_backward.implement("CUDA", _backward)


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if not fits(v, k.shape[3], False):
        return reference.causal_dot_product(q, k, v, state)
    traced = learns(q, k, v, state) or _compiling()
    y, final = (schema.causal_dot_product.call if traced else _prefill)(q, k, v, state)
    return y, final
