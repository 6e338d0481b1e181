"""The operators as PyTorch sees them: `torch.ops.jrt_eval.*`, with schemas, shapes for tracing, and gradients.

Schemas and shapes are the same for every compiled backend; each registers its implementations for its device. Low-level
registration (`Library.define`, `impl`) rather than the `custom_op` decorator: a call costs 3.5 instead of 26 microseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import gradients
from jrt_eval.kernels.features import num_features

LIBRARY = torch.library.Library("jrt_eval", "DEF")

SCHEMAS = (
    "taylor_prefill(Tensor q, Tensor k, Tensor v, Tensor? kv, Tensor? k_sum, Tensor? mask, Tensor? decay)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "taylor_prefill_backward(Tensor q, Tensor k, Tensor v, Tensor? kv, Tensor? k_sum, Tensor? mask, Tensor? decay, Tensor y,"
    " Tensor denominator, Tensor grad_y, Tensor grad_kv, Tensor grad_k_sum) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "taylor_encode(Tensor k, Tensor v, Tensor? mask) -> (Tensor, Tensor)",
    "taylor_encode_backward(Tensor k, Tensor v, Tensor? mask, Tensor grad_kv, Tensor grad_k_sum) -> (Tensor, Tensor)",
    "taylor_step(Tensor q, Tensor k, Tensor v, Tensor(a!) kv, Tensor(b!) k_sum, Tensor? decay) -> Tensor",
    "causal_product(Tensor q, Tensor k, Tensor v, Tensor? state) -> (Tensor, Tensor)",
    "causal_product_backward(Tensor q, Tensor k, Tensor v, Tensor? state, Tensor grad_y, Tensor grad_state)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "window_attention(Tensor q, Tensor k, Tensor v, int window, Tensor? ring_k, Tensor? ring_v, Tensor? seen, Tensor? lengths)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "window_step(Tensor q, Tensor k, Tensor v, Tensor(a!) ring_k, Tensor(b!) ring_v, Tensor(c!) seen) -> Tensor",
    "gated_conv(Tensor a, Tensor b, Tensor weight, Tensor? bias, Tensor? state, Tensor? lengths) -> (Tensor, Tensor)",
    "gated_conv_step(Tensor a, Tensor b, Tensor weight, Tensor? bias, Tensor(a!) state) -> Tensor",
)

for schema in SCHEMAS:
    LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))


def _sums(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    n = num_features(k.shape[-1])
    batch, heads = v.shape[0], v.shape[2]
    return (
        v.new_empty((batch, heads, n, v.shape[-1]), dtype=torch.float32),
        v.new_empty((batch, heads, n), dtype=torch.float32),
    )


def _wide(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _register_shapes() -> None:
    fake = torch.library.register_fake

    @fake("jrt_eval::taylor_prefill", lib=LIBRARY)
    def taylor_prefill(
        q: Tensor, k: Tensor, v: Tensor, kv: Any, k_sum: Any, mask: Any, decay: Any
    ) -> tuple[Tensor, ...]:
        return (v.new_empty(v.shape), *_sums(k, v), v.new_empty(v.shape[:3], dtype=torch.float32))

    @fake("jrt_eval::taylor_prefill_backward", lib=LIBRARY)
    def taylor_prefill_backward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return (_wide(q), _wide(k), _wide(v), *_sums(k, v))

    @fake("jrt_eval::taylor_encode", lib=LIBRARY)
    def taylor_encode(k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        return _sums(k, v)

    @fake("jrt_eval::taylor_encode_backward", lib=LIBRARY)
    def taylor_encode_backward(k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return _wide(k), _wide(v)

    @fake("jrt_eval::taylor_step", lib=LIBRARY)
    def taylor_step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Any) -> Tensor:
        return v.new_empty(v.shape)

    @fake("jrt_eval::causal_product", lib=LIBRARY)
    def causal_product(q: Tensor, k: Tensor, v: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        shape = (v.shape[0], v.shape[2], q.shape[3], v.shape[3])
        return v.new_empty(v.shape), v.new_empty(shape, dtype=torch.float32)

    @fake("jrt_eval::causal_product_backward", lib=LIBRARY)
    def causal_product_backward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
        shape = (v.shape[0], v.shape[2], q.shape[3], v.shape[3])
        return _wide(q), _wide(k), _wide(v), v.new_empty(shape, dtype=torch.float32)

    @fake("jrt_eval::window_attention", lib=LIBRARY)
    def window_attention(
        q: Tensor, k: Tensor, v: Tensor, window: int, ring_k: Any, ring_v: Any, seen: Any, lengths: Any
    ) -> tuple[Tensor, ...]:
        ring = (v.shape[0], window, *v.shape[2:])
        return v.new_empty(v.shape), k.new_empty(ring), v.new_empty(ring), v.new_empty(v.shape[:1], dtype=torch.int64)

    @fake("jrt_eval::window_step", lib=LIBRARY)
    def window_step(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, seen: Tensor) -> Tensor:
        return v.new_empty(v.shape)

    @fake("jrt_eval::gated_conv", lib=LIBRARY)
    def gated_conv(a: Tensor, b: Tensor, weight: Tensor, bias: Any, state: Any, lengths: Any) -> tuple[Tensor, Tensor]:
        past = (a.shape[0], weight.shape[-1] - 1, a.shape[2])
        return a.new_empty(a.shape), a.new_empty(past, dtype=torch.float32)

    @fake("jrt_eval::gated_conv_step", lib=LIBRARY)
    def gated_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Any, state: Tensor) -> Tensor:
        return a.new_empty(a.shape)


_register_shapes()
gradients.register(LIBRARY)
