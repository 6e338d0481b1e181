"""Causal softmax attention over the last keys: prefill and decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select
from jrt_eval.kernels.sliding_window_attention.state import WindowState

__all__ = ["WindowState", "sliding_window_attention", "sliding_window_attention_step"]


def _check(name: str, k: Tensor, v: Tensor, window: int | None, state: WindowState | None) -> None:
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
        checks.floating(name, "state.k", state.k)
        checks.floating(name, "state.v", state.v)
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
    _check(name, k, v, window, state)
    if lengths is not None:
        checks.lengths(name, lengths, v.shape[0], v.shape[1], v.device)
    y, final = select(name, v, backend)(q, k, v, window, state, lengths)
    return y, final


def sliding_window_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: WindowState, *, backend: str = "auto"
) -> Tensor:
    """One token per row of `sliding_window_attention`, for inference; ring and length are updated in place.

    Args:
        q, k, v: (batch, heads, head_dim)
        state: contiguous; its window is its ring's size

    Returns:
        y (batch, heads, head_dim)
    """
    name = "sliding_window_attention_step"
    checks.qkv(name, q, k, v, 3)
    _check(name, k, v, None, state)
    written = dict(zip(("state.k", "state.v", "state.length"), state, strict=True))
    for part, x in written.items():
        checks.writable(name, part, x)
    checks.held_in(name, "state.k", state.k, k.dtype)
    checks.held_in(name, "state.v", state.v, v.dtype)
    checks.inference(name, q, k, v)
    checks.apart(name, written, {"q": q, "k": k, "v": v})
    y: Tensor = select(name, v, backend)(q, k, v, state)
    return y
