"""Taylor linear attention in `torch.ops.jrt_eval`: schemas, shapes and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.library import Operator, reference_gradient
from jrt_eval.kernels.taylor_linear_attention import reference
from jrt_eval.kernels.taylor_linear_attention.features import num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState


def _sums(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    n = num_features(k.shape[-1])
    batch, heads = v.shape[0], v.shape[2]
    return (
        v.new_empty((batch, heads, n, v.shape[-1]), dtype=torch.float32),
        v.new_empty((batch, heads, n), dtype=torch.float32),
    )


def _single(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _prefill_shapes(q: Tensor, k: Tensor, v: Tensor, kv: Any, k_sum: Any, mask: Any, decay: Any) -> tuple[Tensor, ...]:
    return v.new_empty(v.shape), *_sums(k, v), v.new_empty(v.shape[:3], dtype=torch.float32)


def _prefill_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, kv, k_sum, mask, decay = inputs
    y, _, _, denominator = output
    ctx.save_for_backward(q, k, v, kv, k_sum, mask, decay, y, denominator)
    ctx.mark_non_differentiable(denominator)


def _prefill_backward(
    ctx: Any, grad_y: Tensor, grad_kv: Tensor, grad_k_sum: Tensor, _: Any
) -> tuple[Tensor | None, ...]:
    q, k, v, kv, k_sum, mask, decay, y, denominator = ctx.saved_tensors
    if decay is not None:  # the kernels have no gradient with decay
        inputs = (q, k, v, kv, k_sum, mask, decay)
        return reference_gradient(_prefill_reference, inputs, (grad_y, grad_kv, grad_k_sum, None))
    gq, gk, gv, g_kv, g_k_sum = taylor_linear_attention_backward.call(
        q, k, v, kv, k_sum, mask, y, denominator, grad_y, grad_kv, grad_k_sum
    )
    state = (None, None) if kv is None else (g_kv.to(kv.dtype), g_k_sum.to(k_sum.dtype))
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), *state, None, None


def _prefill_reference(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, k_sum: Tensor | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor | None, ...]:
    state = None if kv is None or k_sum is None else TaylorState(kv, k_sum)
    y, final = reference.taylor_linear_attention(q, k, v, state, mask, decay)
    return y, final.kv, final.k, None


def _backward_shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _single(q), _single(k), _single(v), *_sums(k, v)


def _step_shapes(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Any) -> Tensor:
    return v.new_empty(v.shape)


def _encode_shapes(k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    return _sums(k, v)


def _encode_backward(ctx: Any, grad_kv: Tensor, grad_k_sum: Tensor) -> tuple[Tensor | None, ...]:
    k, v, mask = ctx.saved_tensors
    gk, gv = encode_prefix_backward.call(k, v, mask, grad_kv, grad_k_sum)
    return gk.to(k.dtype), gv.to(v.dtype), None


def _encode_backward_shapes(k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _single(k), _single(v)


# Returns y, KV, K and the denominators, which the gradient needs.
taylor_linear_attention = Operator(
    "taylor_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? kv, Tensor? k_sum, Tensor? mask, Tensor? decay)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _prefill_shapes,
    backward=_prefill_backward,
    save=_prefill_save,
    reference=_prefill_reference,
)
taylor_linear_attention_backward = Operator(
    "taylor_linear_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? kv, Tensor? k_sum, Tensor? mask,"
    " Tensor y, Tensor denominator, Tensor grad_y, Tensor grad_kv, Tensor grad_k_sum)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_shapes,
)
taylor_linear_attention_step = Operator(
    "taylor_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!) kv, Tensor(b!) k_sum, Tensor? decay) -> Tensor",
    _step_shapes,
)
encode_prefix = Operator(
    "encode_prefix(Tensor k, Tensor v, Tensor? mask) -> (Tensor, Tensor)",
    _encode_shapes,
    backward=_encode_backward,
    reference=reference.encode_prefix,
)
encode_prefix_backward = Operator(
    "encode_prefix_backward(Tensor k, Tensor v, Tensor? mask, Tensor grad_kv, Tensor grad_k_sum) -> (Tensor, Tensor)",
    _encode_backward_shapes,
)
