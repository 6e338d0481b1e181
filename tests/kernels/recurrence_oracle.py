"""What the recurrent operators should compute, token by token from the formulas, in float64; and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
PER_TOKEN = ("x", "dt", "b", "c", "z")


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


def recurrence(inputs: Inputs, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y and the final state of both operators: x is (batch, length, channels), or with heads (batch, length, heads, dim)."""
    x, dt, a, b, c = (inputs[name].double() for name in ("x", "dt", "a", "b", "c"))
    heads = x.dim() == 4
    d, z, bias, state = (
        None if inputs[name] is None else inputs[name].double() for name in ("d", "z", "dt_bias", "state")
    )
    batch, length = x.shape[:2]
    if bias is not None:
        dt = dt + bias
    if inputs["softplus"]:
        dt = softplus(dt)
    low, high = inputs.get("dt_limit", (-torch.inf, torch.inf))
    dt = dt.clamp(low, high)
    repeat = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(repeat, 2), c.repeat_interleave(repeat, 2)
    if heads:  # one dt, a, B and C for all channels of a head
        dt, a = dt[..., None], a[:, None, None]
        b, c = b[:, :, :, None], c[:, :, :, None]
        d = d if d is None or d.dim() == 2 else d[:, None]
    h = torch.zeros(batch, *x.shape[2:], b.shape[-1], dtype=torch.float64) if state is None else state.clone()
    ys = torch.zeros_like(x)
    counts = torch.full((batch,), length) if lengths is None else lengths
    for row in range(batch):
        for t in range(int(counts[row])):
            step = dt[row, t][..., None]
            h[row] = torch.exp(step * a) * h[row] + step * x[row, t][..., None] * b[row, t]
            y = (h[row] * c[row, t]).sum(-1)
            if d is not None:
                y = y + d * x[row, t]
            ys[row, t] = y if z is None else y * z[row, t] / (1 + torch.exp(-z[row, t]))
    return ys, h


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def scan_inputs(
    batch: int, length: int, channels: int, states: int, groups: int = 1, *, plain: bool = False, seed: int = 0
) -> Inputs:
    """Arguments of `selective_scan` by name, float32; plain: without the optional ones."""
    g = torch.Generator().manual_seed(seed)
    inputs: Inputs = {
        "x": _normal(g, batch, length, channels),
        "dt": _normal(g, batch, length, channels) - 1,
        "a": -4 * torch.rand(channels, states, generator=g),
        "b": _normal(g, batch, length, groups, states),
        "c": _normal(g, batch, length, groups, states),
        "d": _normal(g, channels),
        "z": _normal(g, batch, length, channels),
        "dt_bias": _normal(g, channels),
        "state": _normal(g, batch, channels, states),
        "softplus": True,
    }
    return _plain(inputs) if plain else inputs


def ssd_inputs(
    batch: int,
    length: int,
    heads: int,
    dim: int,
    states: int,
    groups: int = 1,
    *,
    plain: bool = False,
    per_dim: bool = False,
    seed: int = 0,
) -> Inputs:
    """Arguments of `ssd` by name, float32; plain: without the optional ones; per_dim: D has a number per channel."""
    g = torch.Generator().manual_seed(seed)
    inputs: Inputs = {
        "x": _normal(g, batch, length, heads, dim),
        "dt": _normal(g, batch, length, heads),
        "a": -16 * torch.rand(heads, generator=g),
        "b": _normal(g, batch, length, groups, states),
        "c": _normal(g, batch, length, groups, states),
        "d": _normal(g, heads, dim) if per_dim else _normal(g, heads),
        "z": _normal(g, batch, length, heads, dim),
        "dt_bias": _normal(g, heads) - 3,
        "state": _normal(g, batch, heads, dim, states),
        "softplus": True,
        "dt_limit": (0.0, 0.5),
    }
    return _plain(inputs) | {"dt_limit": (-torch.inf, torch.inf)} if plain else inputs


def _plain(inputs: Inputs) -> Inputs:
    """Only what must be given, with time steps that are positive without a softplus."""
    bare = {"d": None, "z": None, "dt_bias": None, "state": None, "softplus": False}
    return inputs | bare | {"dt": inputs["dt"].abs()}


def cast(inputs: Inputs, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Per-token tensors in `dtype`, all on `device`."""

    def convert(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if name in PER_TOKEN or dtype == torch.float64 else value.to(device)

    return {name: convert(name, value) for name, value in inputs.items()}


def tokens(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The same call for some of the tokens."""
    return {
        name: value[:, start:stop] if name in PER_TOKEN and value is not None else value
        for name, value in inputs.items()
    }


def token(inputs: Inputs, t: int) -> Inputs:
    """The arguments of a decode step."""
    return {name: value[:, t] if name in PER_TOKEN and value is not None else value for name, value in inputs.items()}


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in norm; 0 for nothing against nothing."""
    norm, gap = want.double().norm(), (got.double().cpu() - want.double()).norm()
    return float(gap / norm) if norm > 0 else float(gap)
