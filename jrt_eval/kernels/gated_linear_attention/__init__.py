"""Linear attention with a gated state (GLA, RetNet, Lightning attention): prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select

__all__ = ["gated_linear_attention", "gated_linear_attention_step"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    state: Tensor | None = None,
    *,
    scale: float | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Linear attention whose state decays: S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t.

    Args:
        q, k: (batch, length, key heads, key_dim); consecutive heads of v share one of them where v has more
        v: (batch, length, heads, head_dim)
        g: log decay, at most 0, (batch, length, heads) or per key channel (batch, length, heads, key_dim); None: no decay
        state: S_0 (batch, heads, key_dim, head_dim); zeros by default; not modified
        scale: key_dim^-0.5 by default
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        o like v, 0 beyond a row's length, and the state after each row's last token, float32.
    """
    name = "gated_linear_attention"
    inputs(name, q, k, v, g, state, 4)
    if lengths is not None:
        checks.lengths(name, lengths, v.shape[0], v.shape[1], v.device)
    y, final = select(name, v, backend)(q, k, v, g, state, q.shape[-1] ** -0.5 if scale is None else scale, lengths)
    return y, final


def gated_linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    state: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_linear_attention`, for inference.

    Args:
        q, k: (batch, key heads, key_dim)
        v: (batch, heads, head_dim)
        g: (batch, heads) or (batch, heads, key_dim), or None
        state: (batch, heads, key_dim, head_dim), updated in place; contiguous

    Returns:
        o like v.
    """
    name = "gated_linear_attention_step"
    inputs(name, q, k, v, g, state, 3)
    in_place(name, state, {"q": q, "k": k, "v": v, "g": g})
    y: Tensor = select(name, v, backend)(q, k, v, g, state, q.shape[-1] ** -0.5 if scale is None else scale)
    return y


def inputs(name: str, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, dims: int) -> None:
    """Check what both gated operators take; `dims` is 4 with a length, 3 for one step."""
    checks.same_kind(name, v, q, k)
    layout = "(batch, length, heads, dim)" if dims == 4 else "(batch, heads, dim)"
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.dim() != dims or v.dim() != dims or q.shape != k.shape or q.shape[:-2] != v.shape[:-2]:
        checks.fail(f"{name}: expected q, k and v of shape {layout} that agree, got {shapes}")
    key_heads, heads = q.shape[-2], v.shape[-2]
    if not q.shape[-1] or not v.shape[-1] or not key_heads or heads % key_heads:
        checks.fail(f"{name}: v's heads must be a multiple of q's, and no dim 0, got {shapes}")
    if g is not None:
        per_head = tuple(v.shape[:-1])
        if tuple(g.shape) not in (per_head, (*per_head, q.shape[-1])):
            checks.fail(f"{name}: g has shape {tuple(g.shape)}, expected {per_head} or {(*per_head, q.shape[-1])}")
        checks.shaped(name, "g", g, tuple(g.shape), v.device)
    if state is not None:
        checks.shaped(name, "state", state, (v.shape[0], heads, q.shape[-1], v.shape[-1]), v.device)


def in_place(name: str, state: Tensor, read: dict[str, Tensor | None]) -> None:
    """Check a state that a decode step updates."""
    checks.writable(name, "state", state)
    if not state.is_floating_point():
        checks.fail(f"{name}: state is {state.dtype}, expected a floating-point dtype")
    checks.apart(name, {"state": state}, read)
