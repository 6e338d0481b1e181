"""The gated delta rule on the CPU, by the compiled kernels of gated linear attention."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.gated_delta_rule import parallel
from jrt_eval.kernels.gated_linear_attention import schema
from jrt_eval.kernels.gated_linear_attention.cpu import compute, new_state, step
from jrt_eval.kernels.library import decode_step, kernel_or_reference


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

gated_delta_rule = kernel_or_reference(schema.gated_delta_rule, parallel.gated_delta_rule)
gated_delta_rule_step = decode_step(schema.gated_delta_rule_step, step, slice(5, 6))
