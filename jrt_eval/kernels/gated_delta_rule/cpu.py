"""The gated delta rule on the CPU, by the compiled kernels of gated linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.arguments import learns, single
from jrt_eval.kernels.gated_delta_rule import parallel
from jrt_eval.kernels.gated_linear_attention import schema
from jrt_eval.kernels.gated_linear_attention.cpu import compute, new_state, step

_compiling = torch.compiler.is_compiling


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor | None,
    scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    final = new_state(q, v)
    return compute(q, k, v, g, beta, single(state), final, scale, lengths), final


schema.gated_delta_rule.implement("CPU", _prefill)
schema.gated_delta_rule_step.implement("CPU", step)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor | None,
    scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if learns(q, k, v, g, beta, state):
        return parallel.gated_delta_rule(q, k, v, g, beta, state, scale, lengths)
    y, final = schema.gated_delta_rule.call(q, k, v, g, beta, state, scale, lengths)
    return y, final


def gated_delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor, scale: float
) -> Tensor:
    run = schema.gated_delta_rule_step.call if _compiling() else step
    y: Tensor = run(q, k, v, g, beta, state, scale)
    return y
