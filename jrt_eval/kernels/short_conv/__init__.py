"""Short convolution: depthwise and causal, with an activation and a gate. Prefill and decode step."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels import checks
from jrt_eval.kernels.dispatch import select

__all__ = ["short_conv", "short_conv_step"]


def _check(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, gate: Tensor | None
) -> None:
    checks.same_kind(name, x, gate)
    channels, width = x.shape[-1], weight.shape[-1]
    if gate is not None and gate.shape != x.shape:
        checks.fail(f"{name}: x and gate of different shapes, {tuple(x.shape)} and {tuple(gate.shape)}")
    if weight.dim() not in (2, 3) or weight.shape[0] != channels or weight.numel() != channels * width or width < 1:
        checks.fail(
            f"{name}: weight has shape {tuple(weight.shape)}, expected ({channels}, 1, width) or ({channels}, width), width >= 1"
        )
    if weight.device != x.device:
        checks.fail(f"{name}: weight is on {weight.device}, the other tensors on {x.device}")
    checks.floating(name, "weight", weight)
    checks.floating(name, "bias", bias)
    checks.floating(name, "state", state)
    if bias is not None:
        checks.shaped(name, "bias", bias, (channels,), x.device)
    if state is not None:
        checks.shaped(name, "state", state, (x.shape[0], width - 1, channels), x.device)


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    silu: bool = True,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """silu(depthwise causal convolution of x + bias) * gate.

    Args:
        x: (batch, length, channels)
        weight: (channels, 1, width) or (channels, width), the last tap on the current token
        bias: (channels,)
        state: (batch, width - 1, channels), the inputs before the first; zeros by default; not modified
        gate: (batch, length, channels); 1 by default
        silu: False leaves the activation out
        lengths: (batch,), how many tokens of each row count; all by default

    Returns:
        y like x, and the last width - 1 inputs of each row.
    """
    name = "short_conv"
    if x.dim() != 3:
        checks.fail(f"{name}: expected x of shape (batch, length, channels), got {tuple(x.shape)}")
    _check(name, x, weight, bias, state, gate)
    if lengths is not None:
        checks.lengths(name, lengths, x.shape[0], x.shape[1], x.device)
    y, final = select(name, x, backend)(x, gate, weight, bias, state, lengths, silu)
    return y, final


def short_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    *,
    gate: Tensor | None = None,
    silu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """One token of `short_conv`, for inference; state is updated in place.

    Args:
        x, gate: (batch, channels)
        state: (batch, width - 1, channels), contiguous
    """
    name = "short_conv_step"
    if x.dim() != 2:
        checks.fail(f"{name}: expected x of shape (batch, channels), got {tuple(x.shape)}")
    _check(name, x, weight, bias, state, gate)
    checks.writable(name, "state", state)
    checks.inference(name, x, gate, weight, bias)
    checks.apart(name, {"state": state}, {"x": x, "gate": gate, "weight": weight, "bias": bias})
    y: Tensor = select(name, x, backend)(x, gate, weight, bias, state, silu)
    return y
