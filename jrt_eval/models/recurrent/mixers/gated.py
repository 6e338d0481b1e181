"""What mixers with a gated matrix state share; flash-linear-attention's checkpoints have five of them.

All project x to q, k and v, pass each through a short convolution where the config has one, run one recurrent operator,
normalise every head's output, and usually gate it. Parameter names are those of the files.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, no_autocast
from jrt_eval.models.recurrent.reading import Section


@dataclass(frozen=True)
class GatedConfig(MixerConfig):
    """Sizes that all gated mixers have. q has `query_heads`, k `key_heads` and v `value_heads` heads."""

    query_heads: int
    key_heads: int
    value_heads: int
    key_dim: int  # of one head
    head_dim: int  # of one head of v
    conv_size: int = 0  # width of the short convolutions, 0: none
    conv_bias: bool = False
    norm_eps: float = 1e-5
    norm_affine: bool = True
    output_gate: bool = True

    @property
    def heads(self) -> int:
        """Heads of the state and of the output."""
        return max(self.query_heads, self.value_heads)


def channels(section: Section, d_model: int, name: str, default: float, heads: int) -> int:
    """Channels of one head where `name` of the config is all heads' channels over the model's."""
    ratio = section.number(name, default, 0)
    total = round(d_model * ratio)
    if total < 1 or total % heads or not math.isclose(total, d_model * ratio):
        raise section.error(
            f"{name} {ratio:g} times hidden_size {d_model} is {d_model * ratio:g}, it must be a multiple of num_heads {heads}"
        )
    return total // heads


class GatedState(NamedTuple):
    """What a gated mixer carries from token to token, float32."""

    kv: Tensor  # (batch, heads, key dim, head dim)
    q: Tensor  # (batch, width - 1, channels): last inputs of each short convolution; width 1 without convolutions
    k: Tensor
    v: Tensor


class HeadNorm(nn.Module):
    """RMS norm of each head's output, in float32."""

    def __init__(self, dim: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, y: Tensor) -> Tensor:
        """y (..., head dim) -> float32 of the same shape."""
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(y.float(), y.shape[-1:], weight, self.eps)


class GatedMixer(Mixer):
    """A subclass runs its operator in `_recur` and may replace `_gate`."""

    silu = True  # whether SiLU follows the convolutions of q and k; it always follows that of v

    def __init__(self, dim: int, config: GatedConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(dim, config.query_heads * config.key_dim, bias=False)
        self.k_proj = nn.Linear(dim, config.key_heads * config.key_dim, bias=False)
        self.v_proj = nn.Linear(dim, config.value_heads * config.head_dim, bias=False)
        if config.conv_size:
            for name in ("q", "k", "v"):
                n = getattr(self, f"{name}_proj").out_features
                setattr(self, f"{name}_conv1d", nn.Conv1d(n, n, config.conv_size, groups=n, bias=config.conv_bias))
        if config.output_gate:
            self.g_proj = self.build_gate(dim)
        self.o_norm = HeadNorm(config.head_dim, config.norm_eps, config.norm_affine)
        self.o_proj = nn.Linear(config.heads * config.head_dim, dim, bias=False)

    def build_gate(self, dim: int) -> nn.Module:
        """The projection of the output gate."""
        return nn.Linear(dim, self.config.heads * self.config.head_dim, bias=False)

    def activate_gate(self, gate: Tensor) -> Tensor:
        return F.silu(gate)

    @abstractmethod
    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """Output and recurrent state; with x (batch, d) one decode step, which updates `kv` in place.

        q, k, v: (batch, length, heads, dim), without length in a decode step.
        """

    def forward(self, x: Tensor, state: GatedState | None, call: Call) -> tuple[Tensor, GatedState]:
        kv, *conv = (None,) * 4 if state is None else state
        q, new_q = self._convolved("q", x, conv[0], call)
        k, new_k = self._convolved("k", x, conv[1], call)
        v, new_v = self._convolved("v", x, conv[2], call)
        with no_autocast(x):
            y, new = self.recur(x, *self._heads(q, k, v), kv, call)
        return self._output(x, y), GatedState(new, new_q, new_k, new_v)

    def step(self, x: Tensor, state: GatedState, call: Call) -> Tensor:
        q, k, v = (self._convolved(name, x, getattr(state, name), call)[0] for name in ("q", "k", "v"))
        with no_autocast(x):
            y, _ = self.recur(x, *self._heads(q, k, v), state.kv, call)
        return self._output(x, y)

    def _convolved(self, name: str, x: Tensor, state: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """The projection `name` of x after its convolution, and the convolution's state."""
        z: Tensor = getattr(self, f"{name}_proj")(x)
        silu = name == "v" or self.silu
        if not self.config.conv_size:
            empty = z.new_empty((z.shape[0], 0, z.shape[-1]), dtype=torch.float32) if state is None else state
            return (F.silu(z) if self.activates_without_conv(name) else z), empty
        conv: Any = getattr(self, f"{name}_conv1d")
        with no_autocast(x):
            if x.dim() == 2:
                assert state is not None
                return kernels.short_conv_step(z, conv.weight, conv.bias, state, silu=silu, backend=call.backend), state
            return kernels.short_conv(
                z, conv.weight, conv.bias, state, silu=silu, lengths=call.lengths, backend=call.backend
            )

    def activates_without_conv(self, name: str) -> bool:
        """Whether SiLU follows the projection `name` in a model without short convolutions."""
        return name == "v" or self.silu

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        return (
            q.unflatten(-1, (c.query_heads, c.key_dim)),
            k.unflatten(-1, (c.key_heads, c.key_dim)),
            v.unflatten(-1, (c.value_heads, c.head_dim)),
        )

    def _output(self, x: Tensor, y: Tensor) -> Tensor:
        """o_proj(norm(y) * act(gate)); y (..., heads, head dim)."""
        gate = self.g_proj(x).unflatten(-1, y.shape[-2:]).float() if self.config.output_gate else None
        with no_autocast(x):
            normed = self.o_norm(y)
            out = normed if gate is None else normed * self.activate_gate(gate)
        projected: Tensor = self.o_proj(out.to(x.dtype).flatten(-2))
        return projected

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        c = self.config
        channels = sum(getattr(self, f"{name}_proj").out_features for name in ("q", "k", "v"))
        return StateBytes(
            recurrent=c.heads * c.key_dim * c.head_dim * 4, convolution=max(0, c.conv_size - 1) * channels * 4
        )


def unit(x: Tensor) -> Tensor:
    """x (..., dim) in float32, divided by its length: x / sqrt(|x|^2 + 1e-6)."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
