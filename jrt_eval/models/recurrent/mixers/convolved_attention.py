"""The attention layers of mamba_ssm's hybrids: softmax attention behind a short convolution, with shared key heads.

[q; k; v] = conv(in_proj(x));  q, k = rotary(q), rotary(k);  y = out_proj(softmax(q k^T / sqrt(head_dim)) v)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels.rotary import rotary
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.attention import KVState, attend, attend_step
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, no_autocast
from jrt_eval.models.recurrent.reading import Section


class ConvolvedState(NamedTuple):
    conv: Tensor  # (batch, width - 1, channels), float32; width 1 without a convolution
    kv: KVState


@dataclass(frozen=True)
class ConvolvedAttentionConfig(MixerConfig):
    kind: ClassVar[str] = "convolved_attention"

    num_heads: int
    num_key_heads: int
    head_dim: int
    width: int = 0  # of the convolution, 0 without
    bias_in: bool = True
    bias_out: bool = True
    rotary_dim: int = 0
    rotary_base: float = 10000.0

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> ConvolvedAttentionConfig:
        """From mamba_ssm's `attn_cfg`."""
        heads = section.size("num_heads", 2**16)
        key_heads = section.integer("num_heads_kv", heads)
        if heads % key_heads:
            raise section.error(f"num_heads_kv is {key_heads}, it must divide num_heads {heads}")
        head_dim = section.integer("head_dim", facts.d_model // heads)
        if section.get("head_dim") is None and facts.d_model % heads:
            raise section.error(f"num_heads {heads} does not divide d_model {facts.d_model}")
        section.only("causal", True, default=False)
        section.only("rotary_emb_interleaved", False, default=False)
        section.only("mlp_dim", 0, default=0)
        section.only("softmax_scale", None, default=None)
        rotary_dim = section.integer("rotary_emb_dim", 0, low=0, high=head_dim)
        if rotary_dim % 2:
            raise section.error(f"rotary_emb_dim is {rotary_dim}, it must be even")
        return cls(
            num_heads=heads,
            num_key_heads=key_heads,
            head_dim=head_dim,
            width=section.integer("d_conv", 0, low=0, high=4096),
            bias_in=section.flag("qkv_proj_bias", True),
            bias_out=section.flag("out_proj_bias", True),
            rotary_dim=rotary_dim,
            rotary_base=section.number("rotary_emb_base", 10000.0, 0, above=True),
        )

    def build(self, d_model: int) -> Mixer:
        return ConvolvedAttention(d_model, self)


class ConvolvedAttention(Mixer):
    """State: `ConvolvedState`."""

    def __init__(self, dim: int, config: ConvolvedAttentionConfig) -> None:
        super().__init__()
        self.config = config
        channels = (config.num_heads + 2 * config.num_key_heads) * config.head_dim
        self.in_proj = nn.Linear(dim, channels, bias=config.bias_in)
        if config.width:
            self.conv1d = nn.Conv1d(channels, channels, config.width, groups=channels)
        self.out_proj = nn.Linear(config.num_heads * config.head_dim, dim, bias=config.bias_out)

    def _heads(self, qkv: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        kv = config.num_key_heads
        q, k, v = qkv.unflatten(-1, (-1, config.head_dim)).split([config.num_heads, kv, kv], -2)
        if config.rotary_dim:
            cos, sin = call.angles(config.rotary_dim, config.rotary_base)
            if qkv.dim() == 2:  # a decode step
                cos, sin = cos[:, 0], sin[:, 0]
            q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        if config.num_heads != kv:
            k, v = (t.repeat_interleave(config.num_heads // kv, -2) for t in (k, v))
        return q, k, v

    def forward(self, x: Tensor, state: ConvolvedState | None, call: Call) -> tuple[Tensor, ConvolvedState]:
        qkv = self.in_proj(x)
        conv, kv = (None, None) if state is None else state
        if self.config.width:
            with no_autocast(x):
                qkv, conv = kernels.short_conv(
                    qkv,
                    self.conv1d.weight,
                    self.conv1d.bias,
                    conv,
                    silu=False,
                    lengths=call.lengths,
                    backend=call.backend,
                )
        else:
            conv = x.new_zeros(x.shape[0], 0, qkv.shape[-1])
        assert conv is not None
        y, kv = attend(*self._heads(qkv, call), kv, call)
        return self.out_proj(y), ConvolvedState(conv, kv)

    def step(self, x: Tensor, state: ConvolvedState, call: Call) -> Tensor:
        qkv = self.in_proj(x)
        if self.config.width:
            with no_autocast(x):
                qkv = kernels.short_conv_step(
                    qkv, self.conv1d.weight, self.conv1d.bias, state.conv, silu=False, backend=call.backend
                )
        out: Tensor = self.out_proj(attend_step(*self._heads(qkv, call), state.kv))
        return out

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        config, channels = self.config, self.in_proj.out_features
        kv = 2 * length * config.num_heads * config.head_dim * itemsize + 8
        return StateBytes(attention=kv, convolution=max(0, config.width - 1) * channels * 4)
