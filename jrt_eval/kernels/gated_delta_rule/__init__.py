"""The delta rule with a gated state (DeltaNet, Gated DeltaNet, Kimi delta attention): prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select
from jrt_eval.kernels.gated_linear_attention import in_place, inputs

__all__ = ["gated_delta_rule", "gated_delta_rule_step"]


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor | None = None,
    *,
    scale: float | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The delta rule: S = diag(exp g_t) S_{t-1}, S_t = S + beta_t k_t (v_t - S^T k_t)^T, o_t = scale S_t^T q_t.

    Args:
        q, k: (batch, length, key heads, key_dim); consecutive heads of v share one of them where v has more. The models
            that use this operator pass unit vectors.
        v: (batch, length, heads, head_dim)
        g: log decay, at most 0, (batch, length, heads) or per key channel (batch, length, heads, key_dim); None: no decay
        beta: (batch, length, heads)
        state: S_0 (batch, heads, key_dim, head_dim); zeros by default; not modified
        scale: key_dim^-0.5 by default
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        o like v, 0 beyond a row's length, and the state after each row's last token, float32.
    """
    name = "gated_delta_rule"
    inputs(name, q, k, v, g, state, 4)
    checks.shaped(name, "beta", beta, tuple(v.shape[:-1]), v.device)
    if lengths is not None:
        checks.lengths(name, lengths, v.shape[0], v.shape[1], v.device)
    run = select(name, v, backend)
    y, final = run(q, k, v, g, beta, state, q.shape[-1] ** -0.5 if scale is None else scale, lengths)
    return y, final


def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_delta_rule`, for inference.

    Args:
        q, k: (batch, key heads, key_dim)
        v: (batch, heads, head_dim)
        g: (batch, heads) or (batch, heads, key_dim), or None
        beta: (batch, heads)
        state: (batch, heads, key_dim, head_dim), updated in place; contiguous

    Returns:
        o like v.
    """
    name = "gated_delta_rule_step"
    inputs(name, q, k, v, g, state, 3)
    checks.shaped(name, "beta", beta, tuple(v.shape[:-1]), v.device)
    in_place(name, state, {"q": q, "k": k, "v": v, "g": g, "beta": beta})
    y: Tensor = select(name, v, backend)(q, k, v, g, beta, state, q.shape[-1] ** -0.5 if scale is None else scale)
    return y
