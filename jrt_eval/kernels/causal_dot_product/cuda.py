"""The causal dot product on a GPU, by the exact CUDA kernel; its gradient is PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, single
from jrt_eval.kernels.causal_dot_product import reference, schema
from jrt_eval.kernels.causal_dot_product.backward import causal_dot_product_backward
from jrt_eval.kernels.device import stream
from jrt_eval.kernels.taylor_linear_attention.cuda import fits

_c: Any = compiled.cuda_module()
_compiling = torch.compiler.is_compiling


def _prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, _, heads, dim = k.shape
    q, k, v = (x.resolve_neg() for x in (q, k, v))
    y = v.new_empty(v.shape)
    final = v.new_empty((batch, heads, dim, v.shape[3]), dtype=torch.float32)
    if v.numel() == 0:
        return y, final.zero_() if state is None else final.copy_(state)
    with torch.cuda.device(v.device):
        _c.causal_dot_product(q=q, k=k, v=v, state=single(state), y=y, state_out=final, stream=stream(v))
    return y, final


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
