"""Gated short convolution: prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select

__all__ = ["short_conv", "short_conv_step"]


def _check(name: str, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> None:
    checks.same_kind(name, a, b)
    channels, width = a.shape[-1], weight.shape[-1]
    if a.shape != b.shape:
        checks.fail(f"{name}: a and b of different shapes, {tuple(a.shape)} and {tuple(b.shape)}")
    if weight.dim() not in (2, 3) or weight.shape[0] != channels or weight.numel() != channels * width or width < 1:
        checks.fail(
            f"{name}: weight has shape {tuple(weight.shape)}, expected ({channels}, 1, width) or ({channels}, width), width >= 1"
        )
    if weight.device != a.device:
        checks.fail(f"{name}: weight is on {weight.device}, the other tensors on {a.device}")
    if bias is not None:
        checks.shaped(name, "bias", bias, (channels,), a.device)
    if state is not None:
        checks.shaped(name, "state", state, (a.shape[0], width - 1, channels), a.device)


def short_conv(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """silu(depthwise causal convolution of a) * b.

    Args:
        a, b: (batch, length, channels)
        weight: (channels, 1, width) or (channels, width), the last tap on the current token
        bias: (channels,)
        state: (batch, width - 1, channels), the inputs before the first; zeros by default; not modified
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like a, and the last width - 1 inputs of each row.
    """
    name = "short_conv"
    if a.dim() != 3:
        checks.fail(f"{name}: expected a of shape (batch, length, channels), got {tuple(a.shape)}")
    _check(name, a, b, weight, bias, state)
    if lengths is not None:
        checks.lengths(name, lengths, a.shape[0], a.shape[1], a.device)
    y, final = select(name, a, backend)(a, b, weight, bias, state, lengths)
    return y, final


def short_conv_step(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, backend: str = "auto"
) -> Tensor:
    """One token of `short_conv`, for inference; state is updated in place.

    Args:
        a, b: (batch, channels)
        state: (batch, width - 1, channels), contiguous
    """
    name = "short_conv_step"
    if a.dim() != 2:
        checks.fail(f"{name}: expected a of shape (batch, channels), got {tuple(a.shape)}")
    _check(name, a, b, weight, bias, state)
    checks.writable(name, "state", state)
    checks.apart(name, {"state": state}, {"a": a, "b": b, "weight": weight, "bias": bias})
    y: Tensor = select(name, a, backend)(a, b, weight, bias, state)
    return y
