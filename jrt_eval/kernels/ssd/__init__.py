"""The recurrence of Mamba-2 (state space duality): prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select
from jrt_eval.kernels.layout import wide

__all__ = ["ssd", "ssd_step"]

INFINITY = float("inf")


def _check(
    name: str,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
) -> None:
    checks.same_kind(name, x, dt, b, c, z)
    (heads, dim), device = x.shape[-2:], x.device
    if b.dim() != x.dim() or b.shape[-1] == 0:
        checks.fail(f"{name}: b has shape {tuple(b.shape)}, expected (..., groups, states)")
    checks.shaped(name, "dt", dt, tuple(x.shape[:-1]), device)
    checks.shaped(name, "a", a, (heads,), device)
    groups = b.shape[-2]
    if groups == 0 or heads % groups or dim == 0:
        checks.fail(f"{name}: {heads} heads of {dim} numbers do not divide into {groups} groups")
    for letter, value in (("b", b), ("c", c)):
        checks.shaped(name, letter, value, (*x.shape[:-2], groups, b.shape[-1]), device)
    if z is not None:
        checks.shaped(name, "z", z, tuple(x.shape), device)
    if d is not None:
        checks.shaped(name, "d", d, (heads,) if d.dim() == 1 else (heads, dim), device)
    if bias is not None:
        checks.shaped(name, "dt_bias", bias, (heads,), device)


def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    softplus: bool = False,
    dt_limit: tuple[float, float] = (-INFINITY, INFINITY),
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2 (arXiv 2405.21060), with one decay per head.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = (h_t C_t + D x_t) silu(z_t)

    Args:
        x: (batch, length, heads, dim)
        dt: (batch, length, heads)
        a: (heads,), negative in models
        b, c: (batch, length, groups, states), each group for as many adjacent heads
        d: (heads,) or (heads, dim)
        z: (batch, length, heads, dim), the gate
        dt_bias: (heads,), added to dt
        state: (batch, heads, dim, states), h before the first token; zeros by default; not modified
        softplus: dt is log(1 + exp(dt + dt_bias))
        dt_limit: dt is clamped to these, after the softplus
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like x, zeros after a row's length, and the state after each row's last token, float32.
    """
    name = "ssd"
    if x.dim() != 4:
        checks.fail(f"{name}: expected x of shape (batch, length, heads, dim), got {tuple(x.shape)}")
    _check(name, x, dt, a, b, c, d, z, dt_bias)
    if state is not None:
        checks.shaped(name, "state", state, (x.shape[0], *x.shape[2:], b.shape[3]), x.device)
        checks.floating(name, "state", state)
    if lengths is not None:
        checks.lengths(name, lengths, x.shape[0], x.shape[1], x.device)
    y, final = select(name, x, backend)(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus, *map(float, dt_limit))
    return y, final


def ssd_step(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    softplus: bool = False,
    dt_limit: tuple[float, float] = (-INFINITY, INFINITY),
    backend: str = "auto",
) -> Tensor:
    """One token of `ssd`, for inference; the state is updated in place.

    Args:
        x, z: (batch, heads, dim)
        dt: (batch, heads)
        b, c: (batch, groups, states)
        state: (batch, heads, dim, states), contiguous, float32 (float64 for float64)
    """
    name = "ssd_step"
    if x.dim() != 3:
        checks.fail(f"{name}: expected x of shape (batch, heads, dim), got {tuple(x.shape)}")
    _check(name, x, dt, a, b, c, d, z, dt_bias)
    checks.shaped(name, "state", state, (*x.shape, b.shape[2]), x.device)
    checks.held_in(name, "state", state, wide(x.dtype))
    checks.writable(name, "state", state)
    checks.inference(name, x, dt, a, b, c, d, z, dt_bias)
    checks.apart(
        name,
        {"state": state},
        {"x": x, "dt": dt, "a": a, "b": b, "c": c, "d": d, "z": z, "dt_bias": dt_bias},
    )
    low, high = map(float, dt_limit)
    y: Tensor = select(name, x, backend)(x, dt, a, b, c, d, z, dt_bias, state, softplus, low, high)
    return y
