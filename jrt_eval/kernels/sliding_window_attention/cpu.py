"""Sliding-window attention on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, step_on_views
from jrt_eval.kernels.sliding_window_attention import reference, schema
from jrt_eval.kernels.sliding_window_attention.state import WindowState

_c: Any = compiled.module()
_threads = torch.get_num_threads
_grad_enabled = torch.is_grad_enabled
_compiling = torch.compiler.is_compiling


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    seen: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, heads, dim = v.shape
    y = v.new_empty(v.shape)
    out_k, out_v = k.new_empty((batch, window, heads, dim)), v.new_empty((batch, window, heads, dim))
    out_seen = v.new_empty((batch,), dtype=torch.int64)
    ring_k = None if ring_k is None else ring_k.to(k.dtype).contiguous()
    ring_v = None if ring_v is None else ring_v.to(v.dtype).contiguous()
    seen = None if seen is None else seen.contiguous()
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    _c.sliding_window_attention(
        q=q, k=k, v=v, ring_k=ring_k, ring_v=ring_v, seen=seen, lengths=lengths, y=y, ring_k_out=out_k, ring_v_out=out_v,
        seen_out=out_seen, threads=_threads(),
    )  # fmt: skip
    return y, out_k, out_v, out_seen


def _step(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, seen: Tensor) -> Tensor:
    y = v.new_empty(v.shape)
    _c.sliding_window_attention_step(q, k, v, ring_k, ring_v, seen, y, _threads())
    if _grad_enabled():
        increment_version((ring_k, ring_v, seen))
    return y


schema.sliding_window_attention.implement("CPU", _prefill)
schema.sliding_window_attention_step.implement("CPU", _step)


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    ring_k, ring_v, seen = (None, None, None) if state is None else state
    if learns(q, k, v, ring_k, ring_v):
        return reference.sliding_window_attention(q, k, v, window, state, lengths)
    y, *final = schema.sliding_window_attention.call(q, k, v, window, ring_k, ring_v, seen, lengths)
    return y, WindowState(*final)


def sliding_window_attention_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    if _compiling():
        y: Tensor = schema.sliding_window_attention_step.call(q, k, v, *state)
        return y
    return step_on_views(_step, slice(3, 6), q, k, v, *state)
