"""Causal linear attention with the Taylor feature map: prefill, decode step, and the sums over a prefix."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select, select_fused
from jrt_eval.kernels.layout import wide
from jrt_eval.kernels.taylor_linear_attention.features import feature_map, num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState

__all__ = [
    "TaylorState",
    "encode_prefix",
    "feature_map",
    "num_features",
    "prefix_linear_attention",
    "taylor_linear_attention",
    "taylor_linear_attention_step",
]

_compiling = torch.compiler.is_compiling

# Backend (as the caller names it) -> a step that returns None for arguments that need the detailed checks.
_quick_steps: dict[str, Callable[..., Any]] = {}


def check_state(operator: str, kv: Tensor, k: Tensor, v: Tensor, feature_dim: int, in_place: bool) -> None:
    """Check the parts of a TaylorState for values v (batch, ..., heads, head_dim)."""
    batch, heads, n = v.shape[0], v.shape[-2], num_features(feature_dim)
    checks.shaped(operator, "state.kv", kv, (batch, heads, n, v.shape[-1]), v.device)
    checks.shaped(operator, "state.k", k, (batch, heads, n), v.device)
    checks.floating(operator, "state.kv", kv)
    checks.floating(operator, "state.k", k)
    if in_place:
        for name, x in (("state.kv", kv), ("state.k", k)):
            checks.held_in(operator, name, x, wide(v.dtype))
            checks.writable(operator, name, x)


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
        check_state(name, state.kv, state.k, v, q.shape[-1], in_place=False)
    if mask is not None:
        checks.shaped(name, "mask", mask, (v.shape[0], v.shape[1]), v.device)
    if decay is not None:
        checks.shaped(name, "decay", decay, (v.shape[2],), v.device)
        checks.floating(name, "decay", decay)
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
        checks.floating(name, "decay", decay)
    run = select_fused(name, "taylor_linear_attention", v, backend)
    if run is None:
        state = encode_prefix(k_enc, v_enc, mask_enc, backend=backend)
        return taylor_linear_attention(q, k, v, state, mask=mask, decay=decay, backend=backend)
    y, final = run(q, k, v, k_enc, v_enc, mask, mask_enc, decay)
    return y, final


def taylor_linear_attention_step(
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
    if not _compiling():  # a step takes microseconds: check everything at once, and in detail only if that fails
        quick = _quick_steps.get(backend)
        y: Tensor | None = None if quick is None else quick(q, k, v, kv, k_sum, decay)
        if y is not None:
            return y
    name = "taylor_linear_attention_step"
    run = select(name, v, backend)
    if not _compiling() and run.__module__ == f"{__name__}.cpu":
        _quick_steps[backend] = import_module(run.__module__).quick_step
    checks.qkv(name, q, k, v, 3)
    check_state(name, kv, k_sum, v, q.shape[-1], in_place=True)
    checks.inference(name, q, k, v, decay)
    if decay is not None:
        checks.shaped(name, "decay", decay, (v.shape[1],), v.device)
        checks.floating(name, "decay", decay)
    checks.apart(name, {"state.kv": kv, "state.k": k_sum}, {"q": q, "k": k, "v": v, "decay": decay})
    out: Tensor = run(q, k, v, state, decay)
    return out
