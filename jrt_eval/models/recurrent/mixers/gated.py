"""The gated recurrent mixers of flash-linear-attention: GLA, RetNet, DeltaNet, Gated DeltaNet and KDA.

    q, k, v = proj(x), optionally through short convolutions;  o = operator(q, k, v, decay, beta)
    y = o_proj(norm(o) * act(gate)),  norm: RMS over each head

The operator is `gated_linear_attention` (GLA, RetNet) or `gated_delta_rule` (the others), computed by PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels.gated_delta_rule import gated_delta_rule
from jrt_eval.kernels.gated_linear_attention import gated_linear_attention
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.layers import RMSNorm, rotary_angles
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, no_autocast
from jrt_eval.models.recurrent.reading import Section


class GatedState(NamedTuple):
    """conv_*: the last inputs of each convolution (batch, width - 1, channels), width 1 without one."""

    s: Tensor  # (batch, heads, key_dim, head_dim)
    conv_q: Tensor
    conv_k: Tensor
    conv_v: Tensor


@dataclass(frozen=True)
class GatedMixerConfig(MixerConfig):
    """Fields that all five share. heads: of values; q and k have key_heads and are repeated."""

    d_model: int
    heads: int
    key_heads: int
    key_dim: int  # per head
    head_dim: int  # of values, per head
    conv_size: int  # 0: no short convolutions
    norm_eps: float
    gate: bool  # the output gate


def _shared(
    section: Section, *, key_dim: int, value_dim: int, heads: int, key_heads: int, gate: bool
) -> dict[str, Any]:
    """Fields of `GatedMixerConfig` from whole widths."""
    for name, width, count in (("key width", key_dim, key_heads), ("value width", value_dim, heads)):
        if count < 1 or width % count or width < count:
            raise section.error(f"the {name} {width} is not a multiple of {count} heads")
    if heads % key_heads:
        raise section.error(f"{key_heads} key heads do not divide {heads} value heads")
    return {
        "d_model": section.size("hidden_size"),
        "heads": heads,
        "key_heads": key_heads,
        "key_dim": key_dim // key_heads,
        "head_dim": value_dim // heads,
        "conv_size": section.integer("conv_size", 4, high=4096) if section.flag("use_short_conv", True) else 0,
        "norm_eps": section.number("norm_eps", 1e-5, 0, 1, above=True),
        "gate": gate,
    }


@dataclass(frozen=True)
class GLAConfig(GatedMixerConfig):
    kind: ClassVar[str] = "gla"

    clamp_min: float | None = None
    low_rank: int = 16
    normalizer: float = 16.0

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> GLAConfig:
        section.only("use_gk", True, default=True)
        section.only("use_gv", False, default=False)
        section.only("feature_map", None, default=None)
        section.only("num_kv_heads", None, section.size("num_heads"), default=None)
        section.only("gate_fn", "swish", default="swish")
        width, heads = section.size("hidden_size"), section.size("num_heads")
        shared = _shared(
            section,
            key_dim=int(width * section.number("expand_k", 0.5, 0, 16, above=True)),
            value_dim=int(width * section.number("expand_v", 1.0, 0, 16, above=True)),
            heads=heads,
            key_heads=heads,
            gate=section.flag("use_output_gate", True),
        )
        if not section.flag("use_short_conv", False):
            shared["conv_size"] = 0
        return cls(**shared, clamp_min=section.number("clamp_min"))

    def build(self, d_model: int) -> Mixer:
        return GLA(self)


@dataclass(frozen=True)
class RetNetConfig(GatedMixerConfig):
    kind: ClassVar[str] = "retnet"

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> RetNetConfig:
        section.only("feature_map", None, default=None)
        section.only("num_kv_heads", None, section.size("num_heads"), default=None)
        width, heads = section.size("hidden_size"), section.size("num_heads")
        shared = _shared(
            section,
            key_dim=int(width * section.number("expand_k", 1.0, 0, 16, above=True)),
            value_dim=int(width * section.number("expand_v", 2.0, 0, 16, above=True)),
            heads=heads,
            key_heads=heads,
            gate=section.flag("use_output_gate", True),
        )
        if not section.flag("use_short_conv", False):
            shared["conv_size"] = 0
        return cls(**shared)

    def build(self, d_model: int) -> Mixer:
        return RetNet(self)


@dataclass(frozen=True)
class DeltaNetConfig(GatedMixerConfig):
    kind: ClassVar[str] = "delta_net"

    use_beta: bool = True
    negative: bool = False  # beta up to 2: negative eigenvalues
    activation: str = "silu"  # of q and k
    normalisation: str = "l2"  # of q and k

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> DeltaNetConfig:
        section.only("use_output_norm", True, default=True)
        section.only("qk_activation", "silu", "relu", "elu", "identity", default="silu")
        section.only("qk_norm", "l2", "sum", default="l2")
        width, heads = section.size("hidden_size"), section.size("num_heads")
        shared = _shared(
            section,
            key_dim=int(width * section.number("expand_k", 1.0, 0, 16, above=True)),
            value_dim=int(width * section.number("expand_v", 1.0, 0, 16, above=True)),
            heads=heads,
            key_heads=heads,
            gate=section.flag("use_gate", False),
        )
        return cls(
            **shared,
            use_beta=section.flag("use_beta", True),
            negative=section.flag("allow_neg_eigval", False),
            activation=section.get("qk_activation", "silu"),
            normalisation=section.get("qk_norm", "l2"),
        )

    def build(self, d_model: int) -> Mixer:
        return DeltaNet(self)


def _by_head_dim(section: Section, gate: bool) -> dict[str, Any]:
    """The shapes of Gated DeltaNet and KDA, which give head_dim."""
    key_heads, head_dim = section.size("num_heads"), section.size("head_dim")
    heads = section.integer("num_v_heads", key_heads)
    value = int(head_dim * section.number("expand_v", 1.0, 0, 16, above=True))
    return _shared(
        section, key_dim=key_heads * head_dim, value_dim=heads * value, heads=heads, key_heads=key_heads, gate=gate
    )


@dataclass(frozen=True)
class GatedDeltaNetConfig(GatedMixerConfig):
    kind: ClassVar[str] = "gated_deltanet"

    negative: bool = False

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> GatedDeltaNetConfig:
        section.only("output_gate_activation", "swish", default="swish")
        if section.get("expand_v") is None:
            raise section.error("expand_v is missing")
        return cls(
            **_by_head_dim(section, section.flag("use_gate", True)), negative=section.flag("allow_neg_eigval", False)
        )

    def build(self, d_model: int) -> Mixer:
        return GatedDeltaNet(self)


@dataclass(frozen=True)
class KDAConfig(GatedMixerConfig):
    kind: ClassVar[str] = "kda"

    negative: bool = False

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> KDAConfig:
        section.only("safe_gate", False, default=False)
        section.only("lower_bound", None, default=None)
        return cls(**_by_head_dim(section, True), negative=section.flag("allow_neg_eigval", False))

    def build(self, d_model: int) -> Mixer:
        return KDA(self)


class GatedMixer(Mixer):
    """What the five share; a subclass says how q, k and v become an output (`_mix`)."""

    norm_name = "o_norm"  # as the files name it
    gate_act: ClassVar[Any] = staticmethod(F.silu)

    def __init__(self, config: GatedMixerConfig) -> None:
        super().__init__()
        self.config = config
        keys, values = config.key_heads * config.key_dim, config.heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, keys, bias=False)
        self.k_proj = nn.Linear(config.d_model, keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, values, bias=False)
        if config.conv_size:
            for name, width in (("q", keys), ("k", keys), ("v", values)):
                conv = nn.Conv1d(width, width, config.conv_size, groups=width, bias=False)
                self.add_module(f"{name}_conv1d", conv)
        if config.gate:
            self.g_proj = self._gate_projection()
        self.add_module(self.norm_name if config.gate else self._plain_norm, RMSNorm(config.head_dim, config.norm_eps))
        self.o_proj = nn.Linear(values, config.d_model, bias=False)

    @property
    def _plain_norm(self) -> str:
        return "o_norm"

    def _gate_projection(self) -> nn.Module:
        return nn.Linear(self.config.d_model, self.config.heads * self.config.head_dim, bias=False)

    def _activation(self, name: str) -> str:
        """Of q, k or v, behind the convolution or the projection."""
        return "silu" if self.config.conv_size else "identity"

    def _project(self, name: str, x: Tensor, state: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """q, k or v (batch, length, width), and the convolution's new state."""
        y = getattr(self, f"{name}_proj")(x)
        silu = self._activation(name) == "silu"
        if not self.config.conv_size:
            return (F.silu(y) if silu else y), y.new_zeros(len(y), 0, y.shape[-1], dtype=torch.float32)
        conv = getattr(self, f"{name}_conv1d")
        with no_autocast(x):
            y, new = kernels.short_conv(
                y.to(conv.weight.dtype), conv.weight, None, state, silu=silu, lengths=call.lengths, backend=call.backend
            )
        return y, new

    def _heads(self, x: Tensor, dim: int) -> Tensor:
        """(batch, length, heads, dim); key heads are repeated to the number of value heads."""
        x = x.unflatten(-1, (-1, dim))
        return x.repeat_interleave(self.config.heads // x.shape[-2], -2) if x.shape[-2] < self.config.heads else x

    def forward(self, x: Tensor, state: GatedState | None, call: Call) -> tuple[Tensor, GatedState]:
        convs = (None, None, None) if state is None else state[1:]
        (q, conv_q), (k, conv_k), (v, conv_v) = (
            self._project(name, x, held, call) for name, held in zip("qkv", convs, strict=True)
        )
        config = self.config
        q, k, v = self._heads(q, config.key_dim), self._heads(k, config.key_dim), self._heads(v, config.head_dim)
        with no_autocast(x):
            o, s = self._mix(q, k, v, x, None if state is None else state.s, call)
        o = getattr(self, self.norm_name if config.gate else self._plain_norm)(o)
        if config.gate:
            gate = self.g_proj(x).unflatten(-1, (config.heads, config.head_dim))
            o = (o.float() * type(self).gate_act(gate.float())).to(x.dtype)
        return self.o_proj(o.flatten(-2)), GatedState(s, conv_q, conv_k, conv_v)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """q, k (batch, length, heads, key_dim), v (batch, length, heads, head_dim) -> output like v, and the state."""
        raise NotImplementedError

    def step(self, x: Tensor, state: GatedState, call: Call) -> Tensor:
        y, new = self.forward(x[:, None], state, call)
        for held, fresh in zip(state, new, strict=True):
            held.copy_(fresh)
        return y[:, 0]

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        c = self.config
        channels = 2 * c.key_heads * c.key_dim + c.heads * c.head_dim
        return StateBytes(
            recurrent=c.heads * c.key_dim * c.head_dim * 4, convolution=max(0, c.conv_size - 1) * channels * 4
        )


class GLA(GatedMixer):
    """Decay per key dimension: g = logsigmoid(gk_proj(x)) / 16 (arXiv 2312.06635)."""

    norm_name = "g_norm_swish_gate"

    def __init__(self, config: GLAConfig) -> None:
        super().__init__(config)
        self.clamp_min, self.normalizer = config.clamp_min, config.normalizer
        keys = config.key_heads * config.key_dim
        self.gk_proj = nn.Sequential(
            nn.Linear(config.d_model, config.low_rank, bias=False), nn.Linear(config.low_rank, keys, bias=True)
        )

    @property
    def _plain_norm(self) -> str:
        return "g_norm"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        g = F.logsigmoid(self.gk_proj(x).float()).unflatten(-1, (self.config.heads, -1)) / self.normalizer
        if self.clamp_min is not None:
            g = g.clamp(min=self.clamp_min)
        return gated_linear_attention(q, k, v, g, s, mask=call.mask())


class RetNet(GatedMixer):
    """A fixed decay per head, g_h = log(1 - 2^(-5-h)), and rotary positions (arXiv 2307.08621)."""

    norm_name = "g_norm_swish_gate"

    @property
    def _plain_norm(self) -> str:
        return "g_norm"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_angles(call.positions, self.config.key_dim, 10000.0)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        head = torch.arange(self.config.heads, device=x.device, dtype=torch.float32)
        g = torch.log1p(-torch.exp2(-5 - head))[:, None].expand(*v.shape[:3], 1)
        return gated_linear_attention(q, k, v, g, s, mask=call.mask())


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (batch, length, heads, dim) by cos and sin (batch, length, dim / 2)."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    one, two = x.float().chunk(2, -1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], -1).to(x.dtype)


def _unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, with fla's epsilon, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class DeltaNet(GatedMixer):
    """No decay; beta = sigmoid(b_proj(x)) (arXiv 2406.06484)."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__(config)
        self.own = config
        if config.use_beta:
            self.b_proj = nn.Linear(config.d_model, config.heads, bias=False)

    def _activation(self, name: str) -> str:
        return "silu" if name == "v" or self.own.activation == "silu" else "identity"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        if self.own.activation == "relu":
            q, k = q.relu(), k.relu()
        elif self.own.activation == "elu":
            q, k = (F.elu(t) + 1 for t in (q, k))
        if self.own.normalisation == "l2":
            q, k = _unit(q), _unit(k)
        else:
            q, k = (t.float() / t.float().sum(-1, keepdim=True) for t in (q, k))
        beta = self.b_proj(x).float().sigmoid() if self.own.use_beta else v.new_ones(v.shape[:3])
        return gated_delta_rule(q, k, v, 2 * beta if self.own.negative else beta, None, s, mask=call.mask())


class GatedDeltaNet(GatedMixer):
    """Decay per head: g = -exp(A_log) softplus(a_proj(x) + dt_bias) (arXiv 2412.06464)."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(config)
        self.negative = config.negative
        self.a_proj = nn.Linear(config.d_model, config.heads, bias=False)
        self.b_proj = nn.Linear(config.d_model, config.heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(config.heads))

    def _activation(self, name: str) -> str:
        return "silu"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        beta = self.b_proj(x).float().sigmoid()
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        beta = 2 * beta if self.negative else beta
        return gated_delta_rule(_unit(q), _unit(k), v, beta, g[..., None], s, mask=call.mask())


class KDA(GatedMixer):
    """Decay per key dimension: g = -exp(A_log) softplus(f_proj(x) + dt_bias); a sigmoid output gate (arXiv 2510.26692)."""

    gate_act: ClassVar[Any] = staticmethod(torch.sigmoid)

    def __init__(self, config: KDAConfig) -> None:
        super().__init__(config)
        self.negative = config.negative
        width = config.heads * config.key_dim
        self.f_proj = nn.Sequential(
            nn.Linear(config.d_model, config.head_dim, bias=False), nn.Linear(config.head_dim, width, bias=False)
        )
        self.b_proj = nn.Linear(config.d_model, config.heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(width))

    def _gate_projection(self) -> nn.Module:
        c = self.config
        return nn.Sequential(
            nn.Linear(c.d_model, c.head_dim, bias=False), nn.Linear(c.head_dim, c.heads * c.head_dim, bias=True)
        )

    def _activation(self, name: str) -> str:
        return "silu"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, s: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        beta = self.b_proj(x).float().sigmoid()
        g = F.softplus(self.f_proj(x).float() + self.dt_bias.float()).unflatten(-1, (self.config.heads, -1))
        g = -self.A_log.float().exp()[:, None] * g
        return gated_delta_rule(_unit(q), _unit(k), v, 2 * beta if self.negative else beta, g, s, mask=call.mask())
