"""The mixer of Mamba-2 (arXiv 2405.21060).

    [z; x; B; C; dt] = in_proj(x);  [x; B; C] = silu(conv([x; B; C]));  dt = clamp(softplus(dt + dt_bias))
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y = out_proj(norm((h C + D x) silu(z)))

per head, with B and C shared by the heads of a group; the norm is by root mean square over the channels of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels.rms_norm import grouped_rms_norm
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, no_autocast
from jrt_eval.models.recurrent.mixers.mamba import (
    LARGEST_EXPAND,
    LARGEST_KERNEL,
    LARGEST_STATE,
    DecayRates,
    MambaState,
)
from jrt_eval.models.recurrent.reading import Section, short


@dataclass(frozen=True)
class Mamba2Config(MixerConfig):
    kind: ClassVar[str] = "mamba2"

    heads: int
    head_dim: int = 64
    states: int = 128
    groups: int = 1
    width: int = 4  # of the convolution
    bias: bool = False  # of in_proj and out_proj
    conv_bias: bool = True
    norm: bool = True  # before out_proj
    norm_before_gate: bool = False
    norm_eps: float = 1e-5
    d_per_channel: bool = False  # D has a number per channel, not per head
    dt_limit: tuple[float, float] = (0.0, math.inf)

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> Mamba2Config:
        """From mamba_ssm's `ssm_cfg`."""
        inner = int(section.number("expand", 2, 0, LARGEST_EXPAND, above=True) * facts.d_model)
        section.only("d_ssm", None, inner, default=None)
        section.get("chunk_size")  # how it is computed
        head_dim = section.integer("headdim", 64)
        if inner % head_dim:
            raise section.error(f"expand * d_model = {inner} is not a multiple of headdim {head_dim}")
        return cls(
            heads=inner // head_dim,
            head_dim=head_dim,
            states=section.integer("d_state", 128, high=LARGEST_STATE),
            groups=read_groups(section, "ngroups", inner // head_dim),
            width=section.integer("d_conv", 4, high=LARGEST_KERNEL),
            bias=section.flag("bias", False),
            conv_bias=section.flag("conv_bias", True),
            norm=section.flag("rmsnorm", True),
            norm_before_gate=section.flag("norm_before_gate", False),
            d_per_channel=section.flag("D_has_hdim", False),
            dt_limit=read_limit(section, "dt_limit"),
        )

    def build(self, d_model: int) -> Mixer:
        return Mamba2(d_model, self)


def read_groups(section: Section, key: str, heads: int) -> int:
    groups = section.integer(key, 1)
    if heads % groups:
        raise section.error(f"{key} is {groups}, it must divide the {heads} heads")
    return groups


def read_limit(section: Section, key: str) -> tuple[float, float]:
    """Two numbers. Infinity is a number of Python's JSON, and {"__float__": "Infinity"} in what transformers writes."""
    limit = section.get(key)
    if limit is None:
        return 0.0, math.inf
    ends = [_number(end) for end in limit] if isinstance(limit, (list, tuple)) else []
    if len(ends) != 2 or not ends[0] <= ends[1]:
        raise section.error(f"{key} is {short(limit)}, it must be two numbers, the lower first")
    return ends[0], ends[1]


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    if isinstance(value, dict):
        value = {"Infinity": math.inf, "-Infinity": -math.inf}.get(str(value.get("__float__")))
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


class GroupedNorm(nn.Module):
    """Root-mean-square norm over groups of adjacent channels, float32 inside."""

    def __init__(self, dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return grouped_rms_norm(x, self.weight, self.groups, self.eps)


class Mamba2(Mixer, DecayRates):
    """State: `MambaState`, with h (batch, heads, head_dim, states)."""

    def __init__(self, dim: int, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        inner = config.heads * config.head_dim
        channels = inner + 2 * config.groups * config.states
        self.sizes = [inner, channels, config.heads]
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=config.bias)
        self.conv1d = nn.Conv1d(channels, channels, config.width, groups=channels, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(config.heads))
        self.A_log = nn.Parameter(torch.empty(config.heads))
        self.D = nn.Parameter(torch.empty(inner if config.d_per_channel else config.heads))
        if config.norm:
            self.norm = GroupedNorm(inner, config.groups, config.norm_eps)
        self.out_proj = nn.Linear(inner, dim, bias=config.bias)

    def _inputs(self, xbc: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """x, B, C and D as the operator takes them, and the gate if it is the operator's part."""
        config = self.config
        x, b, c = xbc.split([self.sizes[0], config.groups * config.states, config.groups * config.states], -1)
        heads, groups = (config.heads, config.head_dim), (config.groups, config.states)
        d = self.D.view(heads) if config.d_per_channel else self.D
        gate = None if config.norm and config.norm_before_gate else z.unflatten(-1, heads)
        return x.unflatten(-1, heads), b.unflatten(-1, groups), c.unflatten(-1, groups), d, gate

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        y = y.flatten(-2)
        if self.config.norm:
            y = self.norm(y)
            if self.config.norm_before_gate:
                y = y * F.silu(z)
        out: Tensor = self.out_proj(y)
        return out

    def forward(self, x: Tensor, state: MambaState | None, call: Call) -> tuple[Tensor, MambaState]:
        z, xbc, dt = self.in_proj(x).split(self.sizes, -1)
        held, h = (None, None) if state is None else state
        with no_autocast(x):
            xbc, conv = kernels.short_conv(
                xbc, self.conv1d.weight, self.conv1d.bias, held, lengths=call.lengths, backend=call.backend
            )
            u, b, c, d, gate = self._inputs(xbc, z)
            y, h = kernels.ssd(
                u, dt, self.rates(), b, c, d, gate, self.dt_bias, h, softplus=True, dt_limit=self.config.dt_limit,
                lengths=call.lengths, backend=call.backend,
            )  # fmt: skip
        return self._output(y, z), MambaState(conv, h)

    def step(self, x: Tensor, state: MambaState, call: Call) -> Tensor:
        z, xbc, dt = self.in_proj(x).split(self.sizes, -1)
        with no_autocast(x):
            xbc = kernels.short_conv_step(xbc, self.conv1d.weight, self.conv1d.bias, state.conv, backend=call.backend)
            u, b, c, d, gate = self._inputs(xbc, z)
            y = kernels.ssd_step(
                u, dt, self.rates(), b, c, state.h, d, gate, self.dt_bias, softplus=True, dt_limit=self.config.dt_limit,
                backend=call.backend,
            )  # fmt: skip
        return self._output(y, z)

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        channels, width = self.conv1d.in_channels, self.conv1d.kernel_size[0]
        config = self.config
        return StateBytes(
            recurrent=config.heads * config.head_dim * config.states * 4, convolution=(width - 1) * channels * 4
        )
