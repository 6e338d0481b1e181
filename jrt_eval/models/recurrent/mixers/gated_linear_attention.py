"""Gated linear attention (GLA, arXiv 2312.06635) and multi-scale retention (RetNet, arXiv 2307.08621)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels.rotary import rotary
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, ModelFacts
from jrt_eval.models.recurrent.mixers.gated import GatedConfig, GatedMixer, channels
from jrt_eval.models.recurrent.reading import Section

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "sqrelu": lambda x: F.relu(x).square(),
}
GATE_RANK = 16  # of GLA's gate projection
GATE_NORMALIZER = 16  # GLA divides the log gate by it
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class RetentionConfig(GatedConfig):
    kind: ClassVar[str] = "retnet"

    feature_map: str | None = None

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> RetentionConfig:
        heads = section.integer("num_heads", facts.n_head)
        kv_heads = section.integer("num_kv_heads", heads)
        if heads % kv_heads:
            raise section.error(f"num_kv_heads {kv_heads} must divide num_heads {heads}")
        feature_map = section.get("feature_map")
        section.only("feature_map", None, *FEATURE_MAPS, default=None)
        return cls(
            query_heads=heads,
            key_heads=kv_heads,
            value_heads=kv_heads,
            key_dim=channels(section, facts.d_model, "expand_k", cls.expand()[0], heads),
            head_dim=channels(section, facts.d_model, "expand_v", cls.expand()[1], heads),
            conv_size=section.integer("conv_size", 4) if section.flag("use_short_conv", False) else 0,
            norm_eps=section.number("norm_eps", 1e-6, 0, 1, above=True),
            norm_affine=section.flag("elementwise_affine", True),
            output_gate=section.flag("use_output_gate", True),
            feature_map=feature_map,
            **cls.read_more(section),
        )

    @classmethod
    def expand(cls) -> tuple[float, float]:
        """Channels of keys and of values over the model's, by default."""
        return 1.0, 2.0

    @classmethod
    def read_more(cls, section: Section) -> dict[str, Any]:
        """Fields of a subclass."""
        return {}

    def build(self, d_model: int) -> Mixer:
        return Retention(d_model, self)


@dataclass(frozen=True)
class GatedLinearAttentionConfig(RetentionConfig):
    kind: ClassVar[str] = "gla"

    clamp_min: float | None = None  # smallest log gate

    @classmethod
    def expand(cls) -> tuple[float, float]:
        return 0.5, 1.0

    @classmethod
    def read_more(cls, section: Section) -> dict[str, Any]:
        section.only("use_gk", True, default=True)
        section.only("use_gv", False, default=False)
        return {"clamp_min": section.number("clamp_min")}

    def build(self, d_model: int) -> Mixer:
        return GatedLinearAttention(d_model, self)


class Retention(GatedMixer):
    """Linear attention whose state decays by 1 - 2^(-5 - h) per token in head h, with rotary positions."""

    config: RetentionConfig

    def activates_without_conv(self, name: str) -> bool:
        return False

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        if self.config.feature_map is not None:
            act = FEATURE_MAPS[self.config.feature_map]
            q, k = act(q), act(k)
        q, k, g = self.position(x, q, k, call)
        groups = self.config.query_heads // self.config.key_heads
        if groups > 1:
            k, v = (t.repeat_interleave(groups, -2) for t in (k, v))
        if x.dim() == 2:
            assert kv is not None
            return kernels.gated_linear_attention_step(q, k, v, g, kv, backend=call.backend), kv
        return kernels.gated_linear_attention(q, k, v, g, kv, lengths=call.lengths, backend=call.backend)

    def position(self, x: Tensor, q: Tensor, k: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """q and k with their positions, and the log decay (..., heads) or (..., heads, key dim)."""
        cos, sin = call.angles(self.config.key_dim, ROTARY_BASE)
        if x.dim() == 2:
            cos, sin = cos[:, 0], sin[:, 0]
        exponent = -5.0 - torch.arange(self.config.heads, device=x.device)
        g = torch.log1p(-torch.exp2(exponent)).expand(*x.shape[:-1], -1)
        return rotary(q, cos, sin), rotary(k, cos, sin), g


class GatedLinearAttention(Retention):
    """Linear attention whose state decays by a gate per key channel, sigmoid(gk_proj x)^(1/16)."""

    config: GatedLinearAttentionConfig

    def __init__(self, dim: int, config: GatedLinearAttentionConfig) -> None:
        super().__init__(dim, config)
        low = nn.Linear(dim, GATE_RANK, bias=False)
        self.gk_proj = nn.Sequential(low, nn.Linear(GATE_RANK, config.key_heads * config.key_dim))

    def position(self, x: Tensor, q: Tensor, k: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        g = F.logsigmoid(self.gk_proj(x).float()) / GATE_NORMALIZER
        g = g.unflatten(-1, (self.config.key_heads, self.config.key_dim))
        if self.config.clamp_min is not None:
            g = g.clamp_min(self.config.clamp_min)
        return q, k, g.repeat_interleave(self.config.query_heads // self.config.key_heads, -2)
