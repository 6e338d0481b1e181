"""The causal dot product on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.causal_dot_product import schema

_c: Any = compiled.module()
_threads = torch.get_num_threads


def _sums(q: Tensor, v: Tensor) -> Tensor:
    return v.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=torch.float32)


def _prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, final = v.new_empty(v.shape), _sums(q, v)
    _c.causal_dot_product(q=q, k=k, v=v, state=single(state), y=y, state_out=final, threads=_threads())
    return y, final


def _backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out_q, out_k, out_v = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    out_state = _sums(q, v)
    _c.causal_dot_product_backward(
        q=q, k=k, v=v, state=single(state), grad_y=grad_y.to(v.dtype), grad_state=single(grad_state),
        out_q=out_q, out_k=out_k, out_v=out_v, out_state=out_state, threads=_threads(),
    )  # fmt: skip
    return out_q, out_k, out_v, out_state


schema.causal_dot_product.implement("CPU", _prefill)
schema.causal_dot_product_backward.implement("CPU", _backward)


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, final = schema.causal_dot_product.call(q, k, v, state)
    return y, final
