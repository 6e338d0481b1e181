"""Gated linear attention on the CPU, by the compiled kernels, which the gated delta rule shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.gated_linear_attention import parallel, schema
from jrt_eval.kernels.library import decode_step, kernel_or_reference

_c: Any = compiled.module()
_threads = torch.get_num_threads


def compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    state: Tensor | None,
    final: Tensor,
    scale: float,
    lengths: Tensor | None,
) -> Tensor:
    """y like v; `final` receives the state, and may be `state` (float32, contiguous). With beta, the gated delta rule."""
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    g = None if g is None else g.to(torch.float32)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    if beta is None:
        _c.gated_linear_attention(
            q=q, k=k, v=v, g=g, state=state, scale=scale, lengths=lengths, y=y, state_out=final, threads=_threads()
        )
    else:
        _c.gated_delta_rule(
            q=q, k=k, v=v, g=g, beta=beta.to(torch.float32), state=state, scale=scale, lengths=lengths,
            y=y, state_out=final, threads=_threads(),
        )  # fmt: skip
    return y


def new_state(q: Tensor, v: Tensor) -> Tensor:
    """An empty final state (batch, heads, key dim, head dim), float32."""
    return v.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=torch.float32)


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, state: Tensor, scale: float) -> Tensor:
    """One token: y (batch, heads, head dim); the state is updated in place."""
    if state.dtype is torch.float32:
        y = compute(q, k, v, g, beta, state, state, scale, None)
        if torch.is_grad_enabled():
            increment_version(state)
    else:
        wide = state.to(torch.float32)
        y = compute(q, k, v, g, beta, wide, wide, scale, None)
        state.copy_(wide)
    return y


def _prefill(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    final = new_state(q, v)
    return compute(q, k, v, g, None, single(state), final, scale, lengths), final


def _step(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float) -> Tensor:
    return step(q, k, v, g, None, state, scale)


schema.gated_linear_attention.implement("CPU", _prefill)
schema.gated_linear_attention_step.implement("CPU", _step)

gated_linear_attention = kernel_or_reference(schema.gated_linear_attention, parallel.gated_linear_attention)
gated_linear_attention_step = decode_step(schema.gated_linear_attention_step, _step, slice(4, 5))
