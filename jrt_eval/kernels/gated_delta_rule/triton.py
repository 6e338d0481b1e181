"""The gated delta rule on a GPU, by the Triton kernels of gated linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.arguments import learns
from jrt_eval.kernels.gated_delta_rule import parallel
from jrt_eval.kernels.gated_linear_attention import schema
from jrt_eval.kernels.gated_linear_attention.triton import fits, prefill, step

schema.gated_delta_rule.implement("CUDA", prefill)
schema.gated_delta_rule_step.implement("CUDA", step)


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
    if learns(q, k, v, g, beta, state) or not fits(q):
        return parallel.gated_delta_rule(q, k, v, g, beta, state, scale, lengths)
    run = schema.gated_delta_rule.call if torch.compiler.is_compiling() else prefill
    y, final = run(q, k, v, g, beta, state, scale, lengths)
    return y, final


def gated_delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor, scale: float
) -> Tensor:
    run = schema.gated_delta_rule_step.call if torch.compiler.is_compiling() else step
    y: Tensor = run(q, k, v, g, beta, state, scale)
    return y
