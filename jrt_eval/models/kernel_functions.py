"""Our operators with the parameters and results of the functions that transformers' recurrent classes look up by name.

Tensors have transformers' layouts: the convolution and Mamba's scan take (batch, channels, length). A function returns
`NotImplemented` for a call that its operator does not compute; transformers' own function then computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval import kernels

Function = Callable[..., Any]
INFINITY = float("inf")
_SILU = ("silu", "swish")
_ACTIVATIONS = (None, *_SILU)


def causal_conv1d_fn(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """Depthwise causal convolution of hidden_states (batch, channels, length) with weight (channels, width)."""
    if activation not in _ACTIVATIONS:
        return NotImplemented
    x = hidden_states.to(weight.dtype).transpose(1, 2)
    y, _state = kernels.short_conv(x, weight, bias, silu=activation in _SILU, backend=backend)
    return y.transpose(1, 2).to(hidden_states.dtype)


def causal_conv1d_update(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str,
) -> Any:
    """The next token of the convolution; conv_state (batch, channels, width or more) is shifted in place."""
    if activation not in _ACTIVATIONS or hidden_states.shape[-1] != 1:
        return NotImplemented
    window = torch.cat([conv_state, hidden_states], -1)
    conv_state.copy_(window[..., -conv_state.shape[-1] :])
    taps = window[..., -weight.shape[-1] :].to(weight.dtype)
    y = torch.linalg.vecdot(taps, weight) if bias is None else torch.linalg.vecdot(taps, weight) + bias
    y = F.silu(y) if activation in _SILU else y
    return y[..., None].to(hidden_states.dtype)


def mamba_selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """Mamba's scan; hidden_states, dt and z (batch, channels, length), B and C (batch, states, length)."""
    x, dt, b, c = (t.transpose(1, 2).to(hidden_states.dtype) for t in (hidden_states, dt, B, C))
    gate = None if z is None else z.transpose(1, 2).to(x.dtype)
    y, state = kernels.selective_scan(x, dt, A, b, c, D, gate, delta_bias, softplus=delta_softplus, backend=backend)
    out = y.transpose(1, 2)
    return (out, state) if return_last_state else out


def mamba_selective_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """The next token of Mamba's scan; hidden_states, dt and z (batch, channels), B and C (batch, states)."""
    if not _in_place(state):
        return NotImplemented
    x = hidden_states
    dt, b, c = (t.to(x.dtype) for t in (dt, B, C))
    gate = None if z is None else z.to(x.dtype)
    return kernels.selective_scan_step(x, dt, A, b, c, state, D, gate, dt_bias, softplus=dt_softplus, backend=backend)


def mamba2_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, INFINITY),
    return_final_states: bool = False,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """Mamba-2's recurrence; hidden_states (batch, length, heads, dim), dt (batch, length, heads)."""
    x = hidden_states
    dt, b, c = (t.to(x.dtype) for t in (dt, B, C))
    low, high = dt_limit
    y, state = kernels.ssd(
        x, dt, A, b, c, D, None, dt_bias, initial_states, softplus=dt_softplus, dt_limit=(low, high), backend=backend
    )
    return (y, state) if return_final_states else y


def mamba2_selective_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """The next token of Mamba-2's recurrence; hidden_states and z (batch, heads, dim), B and C (batch, groups, states).

    dt (batch, heads, dim), A (heads, dim, states), D and dt_bias (heads, dim) must repeat one number per head, as
    transformers' classes expand them.
    """
    per_head = [_repeated(t, kept) for t, kept in ((dt, 2), (A, 1), (D, 1), (dt_bias, 1))]
    if not _in_place(state) or any(t is NotImplemented for t in per_head):
        return NotImplemented
    step, a, d, bias = per_head
    x = hidden_states
    step, b, c = (t.to(x.dtype) for t in (step, B, C))
    gate = None if z is None else z.to(x.dtype)
    return kernels.ssd_step(x, step, a, b, c, state, d, gate, bias, softplus=dt_softplus, backend=backend)


def torch_chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    backend: str,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule.

    query and key (batch, length, key heads, key dim), value (batch, length, heads, head dim), g (batch, length, heads)
    or, in Kimi delta attention, (batch, length, heads, key dim), beta (batch, length, heads), states (batch, heads,
    key dim, head dim).
    """
    if use_qk_l2norm_in_kernel:
        query, key = _unit(query), _unit(key)
    q, k = query.to(value.dtype), key.to(value.dtype)
    y, state = kernels.gated_delta_rule(q, k, value, g, beta, initial_state, backend=backend)
    return y, state if output_final_state else None


def torch_recurrent_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    backend: str,
    **_: Any,
) -> Any:
    """As `torch_chunk_gated_delta_rule` for one token; the initial state is updated in place and returned."""
    if query.shape[1] != 1 or initial_state is None or not _in_place(initial_state):
        return NotImplemented
    if use_qk_l2norm_in_kernel:
        query, key = _unit(query), _unit(key)
    q, k = query.to(value.dtype), key.to(value.dtype)
    q, k, v, g, beta = (x[:, 0] for x in (q, k, value, g, beta))
    y = kernels.gated_delta_rule_step(q, k, v, g, beta, initial_state, backend=backend)
    return y[:, None], initial_state if output_final_state else None


@dataclass(frozen=True)
class Ours:
    """A function of ours, and the operator that computes it; None where PyTorch does."""

    function: Function
    operator: str | None


# Names in transformers' modules. Kimi delta attention has the parameters of the gated delta rule.
FUNCTIONS: dict[str, Ours] = {
    "causal_conv1d_fn": Ours(causal_conv1d_fn, "short_conv"),
    "causal_conv1d_update": Ours(causal_conv1d_update, None),
    "mamba_selective_scan": Ours(mamba_selective_scan, "selective_scan"),
    "mamba_selective_state_update": Ours(mamba_selective_state_update, "selective_scan_step"),
    "mamba2_chunk_scan": Ours(mamba2_chunk_scan, "ssd"),
    "mamba2_selective_state_update": Ours(mamba2_selective_state_update, "ssd_step"),
    "torch_chunk_gated_delta_rule": Ours(torch_chunk_gated_delta_rule, "gated_delta_rule"),
    "torch_recurrent_gated_delta_rule": Ours(torch_recurrent_gated_delta_rule, "gated_delta_rule_step"),
    "chunk_kimi_delta_attention": Ours(torch_chunk_gated_delta_rule, "gated_delta_rule"),
    "recurrent_kimi_delta_attention": Ours(torch_recurrent_gated_delta_rule, "gated_delta_rule_step"),
}


def _in_place(state: Tensor) -> bool:
    """Whether a decode step can update this state."""
    return state.dtype is torch.float32 and state.is_contiguous() and not state.requires_grad


def _repeated(x: Tensor | None, kept: int) -> Any:
    """x without its dimensions after the first `kept`, along which it must repeat; NotImplemented if it may not."""
    if x is None:
        return None
    for _ in range(x.dim() - kept):
        if x.stride(-1) != 0 and x.shape[-1] != 1:
            return NotImplemented
        x = x[..., 0]
    return x


def _unit(x: Tensor) -> Tensor:
    """x (..., dim) in float32, divided by its length: x / sqrt(|x|^2 + 1e-6)."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
