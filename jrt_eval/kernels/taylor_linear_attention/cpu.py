"""Taylor linear attention on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.autograd.graph import increment_version

from jrt_eval.errors import UserError
from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, single, step_on_views
from jrt_eval.kernels.taylor_linear_attention import backward, reference, schema
from jrt_eval.kernels.taylor_linear_attention.features import num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState

_c: Any = compiled.module()
_threads = torch.get_num_threads
_grad_enabled = torch.is_grad_enabled
_compiling = torch.compiler.is_compiling
_empty_like = torch.empty_like
_contiguous = torch.contiguous_format
_float32 = torch.float32


def _sums(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for KV and K."""
    batch, _, heads, head_dim = v.shape
    n = num_features(k.shape[3])
    return v.new_empty((batch, heads, n, head_dim), dtype=_float32), v.new_empty((batch, heads, n), dtype=_float32)


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, denominator = v.new_empty(v.shape), v.new_empty(v.shape[:3], dtype=_float32)
    kv_out, k_sum_out = _sums(k, v)
    _c.taylor_linear_attention(
        q=q, k=k, v=v, kv=single(kv), k_sum=single(k_sum), mask=single(mask), decay=single(decay),
        y=y, denominator=denominator, kv_out=kv_out, k_sum_out=k_sum_out, threads=_threads(),
    )  # fmt: skip
    return y, kv_out, k_sum_out, denominator


def _encode(k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    kv_out, k_sum_out = _sums(k, v)
    _c.encode_prefix(k=k, v=v, mask=single(mask), kv_out=kv_out, k_sum_out=k_sum_out, threads=_threads())
    return kv_out, k_sum_out


def _prefill_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
    denominator: Tensor,
    grad_y: Tensor,
    grad_kv: Tensor,
    grad_k_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out_q, out_k, out_v = (x.new_empty(x.shape, dtype=_float32) for x in (q, k, v))
    out_kv, out_k_sum = _sums(k, v)
    _c.taylor_linear_attention_backward(
        q=q, k=k, v=v, kv=single(kv), k_sum=single(k_sum), mask=single(mask), y=y, denominator=denominator.contiguous(),
        grad_y=grad_y.to(v.dtype), grad_kv=single(grad_kv), grad_k_sum=single(grad_k_sum),
        out_q=out_q, out_k=out_k, out_v=out_v, out_kv=out_kv, out_k_sum=out_k_sum, threads=_threads(),
    )  # fmt: skip
    return out_q, out_k, out_v, out_kv, out_k_sum


def _step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor | None) -> Tensor:
    y = _empty_like(v, memory_format=_contiguous)
    if y.numel() == 0:
        return y
    try:
        _c.taylor_linear_attention_step(q=q, k=k, v=v, kv=kv, k_sum=k_sum, decay=single(decay), y=y, threads=_threads())
    except ValueError as error:  # overlapping tensors
        raise UserError(str(error)) from None
    if _grad_enabled():
        increment_version((kv, k_sum))
    return y


_quick = _c.quick_step
_c.prepare_quick_step(Tensor, compiled.EXCHANGE_TABLE)


def quick_step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor | None) -> Tensor | None:
    """The step, or None for unusual arguments, which need the detailed checks (all do before PyTorch 2.10)."""
    y = _empty_like(v) if v.is_contiguous() else _empty_like(v, memory_format=_contiguous)
    if kv.requires_grad or k_sum.requires_grad or _forward_ad._current_level >= 0:
        return None
    grad = _grad_enabled()
    if grad and (q.requires_grad or k.requires_grad or v.requires_grad or (decay is not None and decay.requires_grad)):
        return None
    if not _quick(q, k, v, kv, k_sum, decay, y, _threads()):
        return None
    if grad:
        increment_version((kv, k_sum))
    return y


schema.taylor_linear_attention.implement("CPU", _prefill)
schema.taylor_linear_attention_backward.implement("CPU", _prefill_backward)
schema.encode_prefix.implement("CPU", _encode)
schema.encode_prefix_backward.implement("CPU", backward.encode_backward)
schema.taylor_linear_attention_step.implement("CPU", _step)


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    kv, k_sum = (None, None) if state is None else state
    y, kv_out, k_out, _ = schema.taylor_linear_attention.call(q, k, v, kv, k_sum, mask, decay)
    return y, TaylorState(kv_out, k_out)


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    if learns(k, v):
        return reference.encode_prefix(k, v, mask)
    return TaylorState(*schema.encode_prefix.call(k, v, mask))


def taylor_linear_attention_step(q: Tensor, k: Tensor, v: Tensor, state: TaylorState, decay: Tensor | None) -> Tensor:
    # Steps are for inference: past tracing there is nothing that PyTorch's dispatcher would add.
    if _compiling():
        y: Tensor = schema.taylor_linear_attention_step.call(q, k, v, state[0], state[1], decay)
        return y
    return step_on_views(_step, slice(3, 5), q, k, v, state[0], state[1], decay)
