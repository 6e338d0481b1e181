"""The selective scan of Mamba: prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select
from jrt_eval.kernels.layout import wide

__all__ = ["selective_scan", "selective_scan_step"]


def _grouped(x: Tensor, dims: int) -> Tensor:
    """B or C with a dimension for groups."""
    return x.unsqueeze(-2) if x.dim() == dims else x


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
    channels, device = x.shape[-1], x.device
    checks.shaped(name, "dt", dt, tuple(x.shape), device)
    if a.dim() != 2 or a.shape[0] != channels or a.shape[1] == 0:
        checks.fail(f"{name}: a has shape {tuple(a.shape)}, expected ({channels}, states)")
    checks.shaped(name, "a", a, (channels, a.shape[1]), device)
    groups = b.shape[-2]
    if groups == 0 or channels % groups:
        checks.fail(f"{name}: {channels} channels do not divide into {groups} groups")
    for letter, value in (("b", b), ("c", c)):
        checks.shaped(name, letter, value, (*x.shape[:-1], groups, a.shape[1]), device)
    if z is not None:
        checks.shaped(name, "z", z, tuple(x.shape), device)
    for letter, value_ in (("d", d), ("dt_bias", bias)):
        if value_ is not None:
            checks.shaped(name, letter, value_, (channels,), device)


def selective_scan(
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
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba (arXiv 2312.00752, section 3.2), per channel and with a diagonal A.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t;  y_t = (C_t . h_t + D x_t) silu(z_t)

    Args:
        x, dt: (batch, length, channels)
        a: (channels, states), negative in models
        b, c: (batch, length, states), or (batch, length, groups, states), each group for as many adjacent channels
        d: (channels,)
        z: (batch, length, channels), the gate
        dt_bias: (channels,), added to dt
        state: (batch, channels, states), h before the first token; zeros by default; not modified
        softplus: dt is log(1 + exp(dt + dt_bias))
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like x, zeros after a row's length, and the state after each row's last token, float32.
    """
    name = "selective_scan"
    if x.dim() != 3:
        checks.fail(f"{name}: expected x of shape (batch, length, channels), got {tuple(x.shape)}")
    b, c = _grouped(b, 3), _grouped(c, 3)
    _check(name, x, dt, a, b, c, d, z, dt_bias)
    if state is not None:
        checks.shaped(name, "state", state, (x.shape[0], x.shape[2], a.shape[1]), x.device)
        checks.floating(name, "state", state)
    if lengths is not None:
        checks.lengths(name, lengths, x.shape[0], x.shape[1], x.device)
    y, final = select(name, x, backend)(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus)
    return y, final


def selective_scan_step(
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
    backend: str = "auto",
) -> Tensor:
    """One token of `selective_scan`, for inference; the state is updated in place.

    Args:
        x, dt, z: (batch, channels)
        b, c: (batch, states), or (batch, groups, states)
        state: (batch, channels, states), contiguous, float32 (float64 for float64)
    """
    name = "selective_scan_step"
    if x.dim() != 2:
        checks.fail(f"{name}: expected x of shape (batch, channels), got {tuple(x.shape)}")
    b, c = _grouped(b, 2), _grouped(c, 2)
    _check(name, x, dt, a, b, c, d, z, dt_bias)
    checks.shaped(name, "state", state, (*x.shape, a.shape[1]), x.device)
    checks.held_in(name, "state", state, wide(x.dtype))
    checks.writable(name, "state", state)
    checks.inference(name, x, dt, a, b, c, d, z, dt_bias)
    checks.apart(
        name,
        {"state": state},
        {"x": x, "dt": dt, "a": a, "b": b, "c": c, "d": d, "z": z, "dt_bias": dt_bias},
    )
    y: Tensor = select(name, x, backend)(x, dt, a, b, c, d, z, dt_bias, state, softplus)
    return y
