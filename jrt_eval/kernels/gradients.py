"""Gradients of the operators in `ops` that have any: `taylor_prefill` (without decay), `taylor_encode` and `causal_product`.

The backward passes walk over the chunks again and keep only what the forward pass was given and gave: memory is linear in length. The
others (decay, windows, convolutions, on a CPU `encode_prefix`) are differentiated through PyTorch: see `cpu` and `cuda`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _taylor_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, kv, k_sum, mask, decay = inputs
    y, _, _, denominator = output
    ctx.save_for_backward(q, k, v, kv, k_sum, mask, decay, y, denominator)
    ctx.mark_non_differentiable(denominator)


def _taylor_backward(
    ctx: Any, grad_y: Tensor, grad_kv: Tensor, grad_k_sum: Tensor, _: Any
) -> tuple[Tensor | None, ...]:
    q, k, v, kv, k_sum, mask, decay, y, denominator = ctx.saved_tensors
    gq, gk, gv, g_kv, g_k_sum = torch.ops.jrt_eval.taylor_prefill_backward(
        q, k, v, kv, k_sum, mask, decay, y, denominator, grad_y, grad_kv, grad_k_sum
    )
    state = (None, None) if kv is None else (g_kv.to(kv.dtype), g_k_sum.to(k_sum.dtype))
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), *state, None, None


def _encode_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _encode_backward(ctx: Any, grad_kv: Tensor, grad_k_sum: Tensor) -> tuple[Tensor | None, ...]:
    k, v, mask = ctx.saved_tensors
    gk, gv = torch.ops.jrt_eval.taylor_encode_backward(k, v, mask, grad_kv, grad_k_sum)
    return gk.to(k.dtype), gv.to(v.dtype), None


def _causal_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _causal_backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, state = ctx.saved_tensors
    gq, gk, gv, g_state = torch.ops.jrt_eval.causal_product_backward(q, k, v, state, grad_y, grad_state)
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), None if state is None else g_state.to(state.dtype)


def register(library: torch.library.Library) -> None:
    """Attach the backward passes to their operators."""
    add = torch.library.register_autograd
    add("jrt_eval::taylor_prefill", _taylor_backward, setup_context=_taylor_context, lib=library)
    add("jrt_eval::taylor_encode", _encode_backward, setup_context=_encode_context, lib=library)
    add("jrt_eval::causal_product", _causal_backward, setup_context=_causal_context, lib=library)
