"""The operators: checks, choice of backend, call. Tensors are (batch, length, heads, dim) unless said otherwise.

Inputs are float32, bfloat16 or float16 (the reference takes float64 too), of any strides; outputs have the dtype of v; sums and
states are float32 (float64 for float64). Rows of a batch are padded on the right: causality keeps valid outputs exact, and `mask`
or `lengths` keep padding out of the final states. `backend` is "auto", "torch" (the reference, differentiable, any device) or a
compiled one. Wrong shapes, dtypes, devices and backends raise UserError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.registry import QUICK_STEPS, fused, select
from jrt_eval.kernels.states import TaylorState, WindowState

_compiling = torch.compiler.is_compiling


def taylor_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: TaylorState | None = None,
    *,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, TaylorState]:
    """Causal linear attention with the Taylor feature map (Based, arXiv 2402.18668, eq. 3 and section 4.1).

    y_i = [phi(q_i).KV_0 + sum_{j<=i} phi(q_i).phi(k_j) v_j] / [phi(q_i).K_0 + sum_{j<=i} phi(q_i).phi(k_j) + 1e-12]

    With the state of `encode_prefix` as the initial one this is prefix linear attention (Just read twice, arXiv 2407.05483).

    Args:
        q, k: (batch, length, heads, feature_dim)
        v: (batch, length, heads, head_dim)
        state: the sums (KV_0, K_0) to start from; not modified
        mask: (batch, length); where it is 0, k and v contribute nothing (and decay does not advance)
        decay: (heads,), a_h: the numerator's weight for (i, j) is multiplied by a_h^(i-j)

    Returns:
        y (batch, length, heads, head_dim) in v's dtype, and the final state.
    """
    name = "taylor_linear_attention"
    checks.qkv(name, q, k, v, 4)
    if state is not None:
        checks.taylor_state(name, state.kv, state.k, v, q.shape[-1], in_place=False)
    if mask is not None:
        checks.shaped(name, "mask", mask, (v.shape[0], v.shape[1]), v.device)
    if decay is not None:
        checks.shaped(name, "decay", decay, (v.shape[2],), v.device)
    y, final = select(name, v, backend)(q, k, v, state, mask, decay)
    return y, final


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None = None, *, backend: str = "auto") -> TaylorState:
    """The sums over a prefix: KV = sum_j phi(k_j) v_j^T and K = sum_j phi(k_j) over positions with a mask other than 0.

    Args:
        k: (batch, length, heads, feature_dim)
        v: (batch, length, heads, head_dim)
        mask: (batch, length)
    """
    name = "encode_prefix"
    checks.qkv(name, k, k, v, 4)
    if mask is not None:
        checks.shaped(name, "mask", mask, (v.shape[0], v.shape[1]), v.device)
    final: TaylorState = select(name, v, backend)(k, v, mask)
    return final


def prefix_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    *,
    mask: Tensor | None = None,
    mask_enc: Tensor | None = None,
    decay: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, TaylorState]:
    """Prefill of prefix linear attention (Just read twice, arXiv 2407.05483, section 4): every token sees the whole encoded prefix.

    The same as `taylor_linear_attention` from the state of `encode_prefix`, in one go where a backend can.

    Args:
        q, k: (batch, length, heads, feature_dim)
        v: (batch, length, heads, head_dim)
        k_enc, v_enc: (batch, prefix length, heads, feature_dim and head_dim)
        mask, mask_enc: (batch, length), (batch, prefix length); where they are 0, keys and values contribute nothing
        decay: (heads,), as in `taylor_linear_attention`; the prefix's sums decay from the first token on

    Returns:
        y (batch, length, heads, head_dim) in v's dtype, and the final state.
    """
    name = "prefix_linear_attention"
    checks.qkv(name, q, k, v, 4)
    checks.qkv(name, k_enc, k_enc, v_enc, 4)
    checks.same_kind(name, v, v_enc)
    if (v.shape[0], *k.shape[2:], v.shape[3]) != (v_enc.shape[0], *k_enc.shape[2:], v_enc.shape[3]):
        checks.fail(
            f"{name}: k_enc {tuple(k_enc.shape)} and v_enc {tuple(v_enc.shape)} differ from k {tuple(k.shape)} and "
            f"v {tuple(v.shape)} in more than length"
        )
    for which, given, like in (("mask", mask, v), ("mask_enc", mask_enc, v_enc)):
        if given is not None:
            checks.shaped(name, which, given, (like.shape[0], like.shape[1]), v.device)
    if decay is not None:
        checks.shaped(name, "decay", decay, (v.shape[2],), v.device)
    run = fused(name, v, backend)
    if run is None:
        state = encode_prefix(k_enc, v_enc, mask_enc, backend=backend)
        return taylor_linear_attention(q, k, v, state, mask=mask, decay=decay, backend=backend)
    y, final = run(q, k, v, k_enc, v_enc, mask, mask_enc, decay)
    return y, final


def taylor_step(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState, *, decay: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """One token of `taylor_linear_attention`, for inference: KV <- a KV + phi(k) v^T, K <- K + phi(k), y = phi(q).KV / phi(q).K.

    Args:
        q, k: (batch, heads, feature_dim)
        v: (batch, heads, head_dim)
        state: updated in place; contiguous
        decay: (heads,)

    Returns:
        y (batch, heads, head_dim)
    """
    kv, k_sum = state
    if not _compiling():  # a step takes microseconds: one look at everything, and a second only if something is wrong
        quick = QUICK_STEPS.get(backend)
        y: Tensor | None = None if quick is None else quick(q, k, v, kv, k_sum, decay)
        if y is not None:
            return y
    name = "taylor_step"
    run = select(name, v, backend)
    checks.qkv(name, q, k, v, 3)
    checks.taylor_state(name, kv, k_sum, v, q.shape[-1], in_place=True)
    if decay is not None:
        checks.shaped(name, "decay", decay, (v.shape[1],), v.device)
    checks.apart(name, {"state.kv": kv, "state.k": k_sum}, {"q": q, "k": k, "v": v, "decay": decay})
    out: Tensor = run(q, k, v, state, decay)
    return out


def causal_dot_product(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Causal linear attention over given features, not normalised: y_i = q_i.S_0 + sum_{j<=i} (q_i.k_j) v_j.

    Args:
        q, k: (batch, length, heads, features)
        v: (batch, length, heads, head_dim)
        state: S_0 (batch, heads, features, head_dim); not modified

    Returns:
        y (batch, length, heads, head_dim), and the final state S_0 + sum_j k_j v_j^T.
    """
    name = "causal_dot_product"
    checks.qkv(name, q, k, v, 4)
    if state is not None:
        checks.shaped(name, "state", state, (v.shape[0], v.shape[2], q.shape[3], v.shape[3]), v.device)
    y, final = select(name, v, backend)(q, k, v, state)
    return y, final


def _window(name: str, k: Tensor, v: Tensor, window: int | None, state: WindowState | None) -> None:
    if window is not None and window < 1:
        checks.fail(f"{name}: window is {window}; a query sees at least itself, so window >= 1")
    if k.shape != v.shape:
        checks.fail(f"{name}: k and v of different shapes, {tuple(k.shape)} and {tuple(v.shape)}")
    if state is not None:
        held = state.k.shape[1] if window is None else window
        ring = (v.shape[0], held, v.shape[-2], v.shape[-1])
        checks.shaped(name, "state.k", state.k, ring, v.device)
        checks.shaped(name, "state.v", state.v, ring, v.device)
        checks.shaped(name, "state.length", state.length, (v.shape[0],), v.device)
        if state.length.dtype is not torch.int64:
            checks.fail(f"{name}: state.length is {state.length.dtype}, expected int64")


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    state: WindowState | None = None,
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, WindowState]:
    """Causal softmax attention over the last `window` keys, the query's own included; scale 1/sqrt(head_dim).

    Rotary embedding is applied before. Time is linear in length: O(length * window).

    Args:
        q, k, v: (batch, length, heads, head_dim)
        window: how many keys a query sees (a released config's window_size // 2 + 1)
        state: what earlier calls left; not modified
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like v, and the last `window` keys and values of each row.
    """
    name = "sliding_window_attention"
    checks.qkv(name, q, k, v, 4)
    _window(name, k, v, window, state)
    if lengths is not None:
        checks.lengths(name, lengths, v.shape[0], v.shape[1], v.device)
    y, final = select(name, v, backend)(q, k, v, window, state, lengths)
    return y, final


def sliding_window_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState, *, backend: str = "auto") -> Tensor:
    """One token per row of `sliding_window_attention`, for inference; ring and length are updated in place.

    Args:
        q, k, v: (batch, heads, head_dim)
        state: contiguous; its window is its ring's size

    Returns:
        y (batch, heads, head_dim)
    """
    name = "sliding_window_step"
    checks.qkv(name, q, k, v, 3)
    _window(name, k, v, None, state)
    written = dict(zip(("state.k", "state.v", "state.length"), state, strict=True))
    for part, x in written.items():
        checks.writable(name, part, x)
    checks.held_in(name, "state.k", state.k, k.dtype)
    checks.held_in(name, "state.v", state.v, v.dtype)
    checks.apart(name, written, {"q": q, "k": k, "v": v})
    y: Tensor = select(name, v, backend)(q, k, v, state)
    return y


def _conv(name: str, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> None:
    checks.same_kind(name, a, b)
    channels, width = a.shape[-1], weight.shape[-1]
    if a.shape != b.shape:
        checks.fail(f"{name}: a and b of different shapes, {tuple(a.shape)} and {tuple(b.shape)}")
    if weight.dim() not in (2, 3) or weight.shape[0] != channels or weight.numel() != channels * width or width < 1:
        checks.fail(
            f"{name}: weight has shape {tuple(weight.shape)}, expected ({channels}, 1, width) or ({channels}, width), width >= 1"
        )
    if weight.device != a.device:
        checks.fail(f"{name}: weight is on {weight.device}, the other tensors on {a.device}")
    if bias is not None:
        checks.shaped(name, "bias", bias, (channels,), a.device)
    if state is not None:
        checks.shaped(name, "state", state, (a.shape[0], width - 1, channels), a.device)


def gated_short_conv(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """silu(depthwise causal convolution of a) * b.

    Args:
        a, b: (batch, length, channels)
        weight: (channels, 1, width) or (channels, width), the last tap on the current token
        bias: (channels,)
        state: (batch, width - 1, channels), the inputs before the first; zeros by default; not modified
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like a, and the last width - 1 inputs of each row.
    """
    name = "gated_short_conv"
    if a.dim() != 3:
        checks.fail(f"{name}: expected a of shape (batch, length, channels), got {tuple(a.shape)}")
    _conv(name, a, b, weight, bias, state)
    if lengths is not None:
        checks.lengths(name, lengths, a.shape[0], a.shape[1], a.device)
    y, final = select(name, a, backend)(a, b, weight, bias, state, lengths)
    return y, final


def gated_short_conv_step(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, backend: str = "auto"
) -> Tensor:
    """One token of `gated_short_conv`, for inference; state is updated in place.

    Args:
        a, b: (batch, channels)
        state: (batch, width - 1, channels), contiguous
    """
    name = "gated_short_conv_step"
    if a.dim() != 2:
        checks.fail(f"{name}: expected a of shape (batch, channels), got {tuple(a.shape)}")
    _conv(name, a, b, weight, bias, state)
    checks.writable(name, "state", state)
    checks.apart(name, {"state": state}, {"a": a, "b": b, "weight": weight, "bias": bias})
    y: Tensor = select(name, a, backend)(a, b, weight, bias, state)
    return y
