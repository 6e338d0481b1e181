"""The delta rule: DeltaNet (arXiv 2406.06484), Gated DeltaNet (arXiv 2412.06464) and Kimi delta attention (arXiv 2510.26692)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, ModelFacts
from jrt_eval.models.recurrent.mixers.gated import GatedConfig, GatedMixer, channels, unit
from jrt_eval.models.recurrent.reading import Section


@dataclass(frozen=True)
class DeltaNetConfig(GatedConfig):
    kind: ClassVar[str] = "delta_net"

    rate: bool = True  # beta = sigmoid(b_proj x); without it 1
    negative: bool = False  # beta is doubled, so that the state's eigenvalues may be negative
    activation: str = "silu"  # of q and k: silu, relu, elu or identity
    norm: str = "l2"  # of q and k: l2, or sum of absolute values

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> DeltaNetConfig:
        heads = section.integer("num_heads", facts.n_head)
        section.only("qk_activation", "silu", "relu", "elu", "identity", default="silu")
        section.only("qk_norm", "l2", "sum", default="l2")
        section.flag("use_output_norm", True)  # has no effect on fla's layer
        return cls(
            query_heads=heads,
            key_heads=heads,
            value_heads=heads,
            key_dim=channels(section, facts.d_model, "expand_k", 1.0, heads),
            head_dim=channels(section, facts.d_model, "expand_v", 1.0, heads),
            conv_size=read_conv_size(section),
            norm_eps=section.number("norm_eps", 1e-6, 0, 1, above=True),
            output_gate=section.flag("use_gate", False),
            rate=section.flag("use_beta", True),
            negative=section.flag("allow_neg_eigval", False),
            activation=section.get("qk_activation", "silu"),
            norm=section.get("qk_norm", "l2"),
        )

    def build(self, d_model: int) -> Mixer:
        return DeltaNet(d_model, self)


@dataclass(frozen=True)
class GatedDeltaNetConfig(GatedConfig):
    kind: ClassVar[str] = "gated_deltanet"

    negative: bool = False
    sigmoid_gate: bool = False  # the output gate's activation; by default SiLU

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> GatedDeltaNetConfig:
        section.only("output_gate_activation", "swish", "silu", "sigmoid", default="swish")
        return cls(
            **read_delta_sizes(section, facts, expand_v=2.0, head_dim=256),
            output_gate=section.flag("use_gate", True),
            sigmoid_gate=section.get("output_gate_activation") == "sigmoid",
            negative=section.flag("allow_neg_eigval", False),
        )

    def build(self, d_model: int) -> Mixer:
        return GatedDeltaNet(d_model, self)


@dataclass(frozen=True)
class KimiDeltaAttentionConfig(GatedConfig):
    kind: ClassVar[str] = "kda"

    negative: bool = False
    lower_bound: float | None = None  # smallest log gate; None: the gate is unbounded

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> KimiDeltaAttentionConfig:
        section.flag("safe_gate", False)  # lower_bound alone decides what is computed
        return cls(
            **read_delta_sizes(section, facts, expand_v=1.0, head_dim=128),
            negative=section.flag("allow_neg_eigval", False),
            lower_bound=section.number("lower_bound", high=0),
        )

    def build(self, d_model: int) -> Mixer:
        return KimiDeltaAttention(d_model, self)


def read_conv_size(section: Section) -> int:
    return section.integer("conv_size", 4) if section.flag("use_short_conv", True) else 0


def read_delta_sizes(section: Section, facts: ModelFacts, expand_v: float, head_dim: int) -> dict[str, Any]:
    """The fields of `GatedConfig` for the mixers whose config has a head dimension."""
    heads, dim = section.integer("num_heads", facts.n_head), section.integer("head_dim", head_dim)
    value_heads = section.integer("num_v_heads", heads)
    value_dim = dim * section.number("expand_v", expand_v, 0)
    if value_heads % heads:
        raise section.error(f"num_v_heads is {value_heads}, it must be a multiple of num_heads {heads}")
    if round(value_dim) < 1 or not math.isclose(value_dim, round(value_dim), rel_tol=1e-5):
        raise section.error(f"head_dim {dim} times expand_v is {value_dim:g}, it must be an integer of at least 1")
    return {
        "query_heads": heads,
        "key_heads": heads,
        "value_heads": value_heads,
        "key_dim": dim,
        "head_dim": round(value_dim),
        "conv_size": read_conv_size(section),
        "norm_eps": section.number("norm_eps", 1e-6, 0, 1, above=True),
    }


class DeltaNet(GatedMixer):
    """No decay: the state changes only where a key is written."""

    config: DeltaNetConfig

    def __init__(self, dim: int, config: DeltaNetConfig) -> None:
        super().__init__(dim, config)
        self.silu = config.activation == "silu"
        if config.rate:
            self.b_proj = nn.Linear(dim, config.heads, bias=False)

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        q, k = self._features(q), self._features(k)
        beta = torch.sigmoid(self.b_proj(x).float()) if self.config.rate else torch.ones_like(v[..., 0].float())
        return delta_rule(q, k, v, None, 2 * beta if self.config.negative else beta, kv, call)

    def _features(self, x: Tensor) -> Tensor:
        """Activation and norm of q or k (..., heads, key dim)."""
        if self.config.activation == "relu":
            x = F.relu(x)
        elif self.config.activation == "elu":
            x = F.elu(x) + 1
        return unit(x) if self.config.norm == "l2" else F.normalize(x, p=1, dim=-1, eps=1e-6)


class GatedDeltaNet(GatedMixer):
    """The state decays by exp(-exp(A_log) softplus(a_proj x + dt_bias)) in each head."""

    config: GatedDeltaNetConfig

    def __init__(self, dim: int, config: GatedDeltaNetConfig) -> None:
        super().__init__(dim, config)
        self.a_proj = nn.Linear(dim, config.heads, bias=False)
        self.b_proj = nn.Linear(dim, config.heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(config.heads))

    def activate_gate(self, gate: Tensor) -> Tensor:
        return torch.sigmoid(gate) if self.config.sigmoid_gate else F.silu(gate)

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        beta = torch.sigmoid(self.b_proj(x).float())
        return delta_rule(unit(q), unit(k), v, g, 2 * beta if self.config.negative else beta, kv, call)


class KimiDeltaAttention(GatedMixer):
    """The state decays by a gate per key channel, and the output gate is a sigmoid."""

    config: KimiDeltaAttentionConfig

    def __init__(self, dim: int, config: KimiDeltaAttentionConfig) -> None:
        super().__init__(dim, config)
        gates = config.heads * config.key_dim
        low = nn.Linear(dim, config.head_dim, bias=False)
        self.f_proj = nn.Sequential(low, nn.Linear(config.head_dim, gates, bias=False))
        self.b_proj = nn.Linear(dim, config.heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(gates))

    def build_gate(self, dim: int) -> nn.Module:
        low = nn.Linear(dim, self.config.head_dim, bias=False)
        return nn.Sequential(low, nn.Linear(self.config.head_dim, self.config.heads * self.config.head_dim))

    def activate_gate(self, gate: Tensor) -> Tensor:
        return torch.sigmoid(gate)

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        raw = (self.f_proj(x).float() + self.dt_bias.float()).unflatten(-1, (self.config.heads, self.config.key_dim))
        rate = self.A_log.float().exp()[:, None]
        if self.config.lower_bound is None:
            g = -rate * F.softplus(raw)
        else:
            g = self.config.lower_bound * torch.sigmoid(rate * raw)
        beta = torch.sigmoid(self.b_proj(x).float())
        return delta_rule(unit(q), unit(k), v, g, 2 * beta if self.config.negative else beta, kv, call)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, kv: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` over many tokens, or for q (batch, heads, dim) one decode step, which updates `kv` in place."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    if q.dim() == 3:
        assert kv is not None
        return kernels.gated_delta_rule_step(q, k, v, g, beta, kv, backend=call.backend), kv
    return kernels.gated_delta_rule(q, k, v, g, beta, kv, lengths=call.lengths, backend=call.backend)
