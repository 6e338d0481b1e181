"""Causal linear attention over given features, not normalised."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select

__all__ = ["causal_dot_product"]


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
        checks.floating(name, "state", state)
    y, final = select(name, v, backend)(q, k, v, state)
    return y, final
