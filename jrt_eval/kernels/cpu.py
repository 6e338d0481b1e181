"""The compiled kernels on the CPU: tensors in, pointers to csrc, and the functions that `registry` lists as backend "cpu".

Arguments have been checked in `api`. Views are passed with their strides; only states, masks and other small tensors are copied
where they are not laid out as the kernels read them. Tensors are held by these frames while a kernel runs without the GIL.
Steps do not pass PyTorch's dispatcher, which elsewhere writes out lazily negated views (of a complex tensor's imaginary part): they
call `resolve_neg` themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.errors import UserError
from jrt_eval.kernels import backward, compiled, ops, reference
from jrt_eval.kernels.arguments import DTYPES, address, gated_conv, gated_conv_step, learns, single
from jrt_eval.kernels.features import num_features
from jrt_eval.kernels.states import TaylorState, WindowState

_c: Any = compiled.module()
_empty_like = torch.empty_like
_contiguous = torch.contiguous_format
_float32 = torch.float32
_threads = torch.get_num_threads
_grad_enabled = torch.is_grad_enabled
_compiling = torch.compiler.is_compiling


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


def _taylor_prefill(
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


def _taylor_encode(k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    _, kv, k_sum, _ = _linear(None, k, v, None, None, mask, None, True)
    return kv, k_sum


def _causal_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, kv, _, _ = _linear(q, k, v, state, None, None, None, False)
    return y, kv


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


def _taylor_prefill_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
    y: Tensor,
    denominator: Tensor,
    grad_y: Tensor,
    grad_kv: Tensor,
    grad_k_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if decay is not None:
        raise UserError(
            "taylor_prefill has no compiled gradient with decay; call jrt_eval.kernels.taylor_linear_attention"
        )
    return _linear_backward(q, k, v, kv, k_sum, mask, y, denominator.contiguous(), grad_y, grad_kv, grad_k_sum)


def _causal_product_backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gq, gk, gv, g_state, _ = _linear_backward(q, k, v, state, None, None, None, None, grad_y, grad_state, None)
    return gq, gk, gv, g_state


def _taylor_step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor | None) -> Tensor:
    batch, heads, n, head_dim = kv.shape
    q, k, v = q.resolve_neg(), k.resolve_neg(), v.resolve_neg()
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
    """The step, if its arguments are plainly right; None if they need a closer look (all do before PyTorch 2.10)."""
    y = _empty_like(v) if v.is_contiguous() else _empty_like(v, memory_format=_contiguous)
    if kv.requires_grad or k_sum.requires_grad or not _quick(q, k, v, kv, k_sum, decay, y, _threads()):
        return None
    if _grad_enabled():
        increment_version((kv, k_sum))
    return y


def _window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    seen: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, dim = v.shape
    y = v.new_empty(v.shape)
    out_k, out_v = k.new_empty((batch, window, heads, dim)), v.new_empty((batch, window, heads, dim))
    out_seen = v.new_empty((batch,), dtype=torch.int64)
    ring_k = None if ring_k is None else ring_k.to(k.dtype).contiguous()
    ring_v = None if ring_v is None else ring_v.to(v.dtype).contiguous()
    seen = None if seen is None else seen.contiguous()
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    _c.window_attention(
        q.data_ptr(),
        *q.stride(),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        y.data_ptr(),
        address(ring_k),
        address(ring_v),
        address(seen),
        address(lengths),
        out_k.data_ptr(),
        out_v.data_ptr(),
        out_seen.data_ptr(),
        batch,
        length,
        heads,
        dim,
        window,
        DTYPES[v.dtype],
        _threads(),
    )
    return y, out_k, out_v, out_seen


def _window_step(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, seen: Tensor) -> Tensor:
    batch, heads, dim = v.shape
    q, k, v = q.resolve_neg(), k.resolve_neg(), v.resolve_neg()
    y = v.new_empty((batch, heads, dim))
    _c.window_step(
        q.data_ptr(),
        *q.stride(),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        y.data_ptr(),
        ring_k.data_ptr(),
        ring_v.data_ptr(),
        seen.data_ptr(),
        batch,
        heads,
        dim,
        ring_k.shape[1],
        DTYPES[v.dtype],
        _threads(),
    )
    if _grad_enabled():
        increment_version((ring_k, ring_v, seen))
    return y


def _conv(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state_in: Tensor | None,
    state_out: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    batch, length, channels = a.shape
    y = a.new_empty((batch, length, channels))
    if weight.dtype != a.dtype or not weight.is_contiguous():
        weight = weight.to(a.dtype).contiguous()
    if bias is not None and (bias.dtype != a.dtype or not bias.is_contiguous()):
        bias = bias.to(a.dtype).contiguous()
    _c.conv(
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        y.data_ptr(),
        weight.data_ptr(),
        address(bias),
        address(state_in),
        state_out.data_ptr(),
        address(lengths),
        batch,
        length,
        channels,
        weight.shape[-1],
        DTYPES[a.dtype],
        _threads(),
    )
    return y


def _gated_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    return gated_conv(_conv, a, b, weight, bias, state, lengths)


def _gated_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    return gated_conv_step(_conv, a.resolve_neg(), b.resolve_neg(), weight, bias, state)


def _implement() -> None:
    kernels = {
        "taylor_prefill": _taylor_prefill,
        "taylor_prefill_backward": _taylor_prefill_backward,
        "taylor_encode": _taylor_encode,
        "taylor_encode_backward": backward.encode_backward,
        "taylor_step": _taylor_step,
        "causal_product": _causal_product,
        "causal_product_backward": _causal_product_backward,
        "window_attention": _window_attention,
        "window_step": _window_step,
        "gated_conv": _gated_conv,
        "gated_conv_step": _gated_conv_step,
    }
    for name, kernel in kernels.items():
        ops.LIBRARY.impl(name, kernel, "CPU")


_implement()
_ops = torch.ops.jrt_eval


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    kv, k_sum = (None, None) if state is None else state
    if decay is not None and learns(q, k, v, kv, k_sum, decay):
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    y, kv_out, k_out, _ = _ops.taylor_prefill(q, k, v, kv, k_sum, mask, decay)
    return y, TaylorState(kv_out, k_out)


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    if learns(k, v):
        return reference.encode_prefix(k, v, mask)
    return TaylorState(*_ops.taylor_encode(k, v, mask))


def taylor_step(q: Tensor, k: Tensor, v: Tensor, state: TaylorState, decay: Tensor | None) -> Tensor:
    # Steps are for inference: past tracing there is nothing that PyTorch's dispatcher would add.
    y: Tensor = (_ops.taylor_step if _compiling() else _taylor_step)(q, k, v, state[0], state[1], decay)
    return y


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    y, final = _ops.causal_product(q, k, v, state)
    return y, final


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    ring_k, ring_v, seen = (None, None, None) if state is None else state
    if learns(q, k, v, ring_k, ring_v):
        return reference.sliding_window_attention(q, k, v, window, state, lengths)
    y, *final = _ops.window_attention(q, k, v, window, ring_k, ring_v, seen, lengths)
    return y, WindowState(*final)


def sliding_window_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    y: Tensor = (_ops.window_step if _compiling() else _window_step)(q, k, v, *state)
    return y


def gated_short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    if learns(a, b, weight, bias, state):
        return reference.gated_short_conv(a, b, weight, bias, state, lengths)
    y, last = _ops.gated_conv(a, b, weight, bias, state, lengths)
    return y, last


def gated_short_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    y: Tensor = (_ops.gated_conv_step if _compiling() else _gated_conv_step)(a, b, weight, bias, state)
    return y
