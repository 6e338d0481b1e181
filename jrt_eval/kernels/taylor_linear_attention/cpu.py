"""Taylor linear attention on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.autograd.graph import increment_version

from jrt_eval.errors import UserError
from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import DTYPES, address, learns, single, step_on_views
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


def _linear(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
    taylor: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, kv, k_sum and denominator; without q only kv and k_sum, without Taylor features only y and kv are filled."""
    batch, length, heads, head_dim = v.shape
    dim = k.shape[3]
    n = num_features(dim) if taylor else dim
    shape = v.shape if q is not None else (0,)
    y = v.new_empty(shape)
    denominator = v.new_empty(shape[:3] if taylor else (0,), dtype=torch.float32)
    kv_out = v.new_empty((batch, heads, n, head_dim), dtype=torch.float32)
    k_out = v.new_empty((batch, heads, n) if taylor else (0,), dtype=torch.float32)
    kv, k_sum, mask, decay = single(kv), single(k_sum), single(mask), single(decay)
    query = (0, 0, 0, 0, 0) if q is None else (q.data_ptr(), *q.stride())
    _c.linear_attention(
        *query,
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        y.data_ptr(),
        denominator.data_ptr() if q is not None and taylor else 0,
        address(kv),
        address(k_sum),
        kv_out.data_ptr(),
        k_out.data_ptr() if taylor else 0,
        address(mask),
        address(decay),
        batch,
        length,
        heads,
        dim,
        n,
        head_dim,
        DTYPES[v.dtype],
        taylor,
        _threads(),
    )
    return y, kv_out, k_out, denominator


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if q.numel() == 0:  # no pointer: say that there are no tokens by the other way
        y, denominator = (
            torch.empty_like(v, memory_format=torch.contiguous_format),
            v.new_empty(v.shape[:3], dtype=torch.float32),
        )
        _, kv_out, k_out, _ = _linear(None, k, v, kv, k_sum, mask, decay, True)
        return y, kv_out, k_out, denominator
    return _linear(q, k, v, kv, k_sum, mask, decay, True)


def _encode(k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    _, kv, k_sum, _ = _linear(None, k, v, None, None, mask, None, True)
    return kv, k_sum


def _linear_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    y: Tensor | None,
    denominator: Tensor | None,
    grad_y: Tensor,
    grad_kv: Tensor,
    grad_k_sum: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    taylor = y is not None
    batch, length, heads, head_dim = v.shape
    dim = k.shape[3]
    n = num_features(dim) if taylor else dim
    gq, gk = v.new_empty(q.shape, dtype=_float32), v.new_empty(k.shape, dtype=_float32)
    gv = v.new_empty(v.shape, dtype=_float32)
    g_kv = v.new_empty((batch, heads, n, head_dim), dtype=_float32)
    g_k_sum = v.new_empty((batch, heads, n) if taylor else (0,), dtype=_float32)
    kv, k_sum, mask, grad_k_sum = (single(x) for x in (kv, k_sum, mask, grad_k_sum))
    grad_kv = grad_kv.to(_float32).contiguous()
    grad_y = grad_y.to(v.dtype)
    _c.linear_backward(
        q.data_ptr(),
        *q.stride(),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        *((0, 0, 0, 0, 0) if y is None else (y.data_ptr(), *y.stride())),
        grad_y.data_ptr(),
        *grad_y.stride(),
        address(denominator),
        address(kv),
        address(k_sum),
        address(grad_kv),
        address(grad_k_sum),
        gq.data_ptr(),
        gk.data_ptr(),
        gv.data_ptr(),
        g_kv.data_ptr(),
        g_k_sum.data_ptr() if taylor else 0,
        address(mask),
        batch,
        length,
        heads,
        dim,
        n,
        head_dim,
        DTYPES[v.dtype],
        taylor,
        _threads(),
    )
    return gq, gk, gv, g_kv, g_k_sum


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
    return _linear_backward(q, k, v, kv, k_sum, mask, y, denominator.contiguous(), grad_y, grad_kv, grad_k_sum)


def _step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor | None) -> Tensor:
    batch, heads, n, head_dim = kv.shape
    y = _empty_like(v, memory_format=_contiguous)
    rates = single(decay)  # held here while its address is used
    try:
        _c.taylor_step(
            q.data_ptr(),
            *q.stride(),
            k.data_ptr(),
            *k.stride(),
            v.data_ptr(),
            *v.stride(),
            y.data_ptr(),
            kv.data_ptr(),
            k_sum.data_ptr(),
            address(rates),
            batch,
            heads,
            q.shape[2],
            n,
            head_dim,
            DTYPES[v.dtype],
            _threads(),
        )
    except ValueError as error:  # overlapping tensors
        raise UserError(str(error)) from None
    if _grad_enabled():
        increment_version((kv, k_sum))
    return y


_quick = _c.quick_step
_c.prepare_quick_step(Tensor, getattr(Tensor, "__dlpack_c_exchange_api__", None))


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
