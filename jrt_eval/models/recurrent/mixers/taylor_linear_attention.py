"""Taylor linear attention: causal (Based), with decay, or with a prefix encoder (JRT-RNN).

    y_i = phi(q_i) . [sum_{j<=i} phi(k_j) v_j + sum_{j<M} phi(ke_j) ve_j] / (the same without v, + 1e-12)

    q, k, v    queries, keys, values           phi   the second-order Taylor feature map (jrt_eval.kernels)
    ke, ve     keys and values of the encoder  M     encoder length (`enc_length`)

With decay the numerator's terms shrink by a_h per step and are scaled by (decay_proj x_i)_h; the denominator's do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels import TaylorState
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, no_autocast
from jrt_eval.models.recurrent.reading import Section, short

LARGEST_ENCODER = 2**20  # shorter prompts are padded to this many tokens


@dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
    kind: ClassVar[str] = "linear_attention"

    num_heads: int
    head_dim: int
    feature_dim: int = 16
    decay: bool = False

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> LinearAttentionConfig:
        heads, head_dim, feature_dim = _read_shape(section, facts)
        decay = section.flag("use_decay_proj", False)
        if decay and not facts.fixed_decay:
            raise section.error("use_decay_proj is true and fixed_decay is not: decay is supported with both only")
        if decay and heads != facts.n_head:
            raise section.error(f"num_heads is {heads} and n_head {facts.n_head}: decay needs them to be equal")
        return cls(heads, head_dim, feature_dim, decay)

    def build(self, d_model: int) -> Mixer:
        return TaylorLinearAttention(d_model, self)


@dataclass(frozen=True)
class PrefixLinearAttentionConfig(MixerConfig):
    kind: ClassVar[str] = "prefix_linear_attention"

    num_heads: int
    head_dim: int
    feature_dim: int = 16
    enc_length: int = 1024  # M
    mask_pads: bool = True  # k and ke of left padding are zeroed

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> PrefixLinearAttentionConfig:
        heads, head_dim, feature_dim = _read_shape(section, facts)
        if head_dim * heads != facts.d_model:
            raise section.error(f"head_dim is {head_dim}, it must be n_embd / num_heads = {facts.d_model / heads:g}")
        section.only("use_decay_proj", False, None, default=False)
        enc_length = section.integer("enc_length", facts.enc_length, high=LARGEST_ENCODER)
        if enc_length is None:
            raise section.error("enc_length is missing, also at the top level")
        return cls(heads, head_dim, feature_dim, enc_length, section.flag("use_mask", True))

    def build(self, d_model: int) -> Mixer:
        return TaylorLinearAttention(d_model, self)


def _read_shape(section: Section, facts: ModelFacts) -> tuple[int, int, int]:
    """(num_heads, head_dim, feature_dim), and a check of the feature map."""
    heads = section.integer("num_heads", facts.n_head)
    head_dim = section.integer("head_dim")
    if head_dim is None:
        if facts.d_model % heads:
            raise section.error(f"num_heads {heads} does not divide n_embd {facts.d_model}")
        head_dim = facts.d_model // heads
    section.number("eps", 1e-12, 0, 1e-9)  # the release's 1e-12 is used; what is smaller than 1e-9 makes no difference
    feature_dim = section.integer("feature_dim", 16, high=4096)
    feature_map = section.get("feature_map")
    if feature_map is not None:
        if not isinstance(feature_map, dict) or not isinstance(feature_map.get("_target_"), str):
            raise section.error(f"feature_map is {short(feature_map)}, it must be an object with a _target_")
        if feature_map["_target_"].rsplit(".", 1)[-1] != "TaylorExp":
            raise section.error(f"feature_map names {short(feature_map['_target_'])}, only TaylorExp is supported")
        for key in ("input_dim", "scale_dim"):
            if feature_map.get(key) not in (None, feature_dim):
                raise section.error(f"feature_map.{key} is {short(feature_map[key])}, feature_dim is {feature_dim}")
    section.only("feature_name", "taylor_exp", default="taylor_exp")
    section.only("scale_dim", feature_dim, None, default=None)
    return heads, head_dim, feature_dim


class TaylorLinearAttention(Mixer):
    """State: the sums of phi(k) v^T and phi(k) over all earlier tokens, encoder included (`TaylorState`)."""

    def __init__(self, dim: int, config: LinearAttentionConfig | PrefixLinearAttentionConfig) -> None:
        super().__init__()
        prefix = config if isinstance(config, PrefixLinearAttentionConfig) else None
        self.heads, self.head_dim, self.feature_dim = config.num_heads, config.head_dim, config.feature_dim
        self.enc_length = prefix.enc_length if prefix else 0
        self.mask_pads = prefix.mask_pads if prefix else False
        self.proj_q = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
        self.proj_k = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
        self.proj_v = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        if self.enc_length:
            self.proj_k_enc = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
            self.proj_v_enc = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        decays = isinstance(config, LinearAttentionConfig) and config.decay
        self.decay_proj = nn.Linear(dim, self.heads, bias=False) if decays else None
        self.out_proj = nn.Linear(self.heads * self.head_dim, dim, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _prefix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
        """The encoder's keys, values and mask over the prefix, or None where nothing is encoded."""
        if not self.enc_length or not call.max_encoded or call.encoded is None:
            return None
        x = x[:, : call.max_encoded]
        ke, ve = self._split(self.proj_k_enc(x)), self._split(self.proj_v_enc(x))
        ke = self._without_pads(ke, call)
        return ke, ve, torch.arange(x.shape[1], device=x.device) < call.encoded[:, None]

    def _without_pads(self, k: Tensor, call: Call) -> Tensor:
        """k (batch, length, heads, feature_dim), zeroed at left padding."""
        if call.pads is None or not self.mask_pads:
            return k
        place = torch.arange(k.shape[1], device=k.device)
        return k.masked_fill((place < call.pads[:, None])[..., None, None], 0)

    def forward(self, x: Tensor, state: TaylorState | None, call: Call) -> tuple[Tensor, TaylorState]:
        q, k, v = self._split(self.proj_q(x)), self._split(self.proj_k(x)), self._split(self.proj_v(x))
        prefix = None
        if state is None:
            prefix = self._prefix(x, call)
            k = self._without_pads(k, call)
        scale, decay = self._decay(x, call)
        with no_autocast(x):
            if prefix is None:
                y, new = kernels.taylor_linear_attention(
                    q, k, v, state, mask=call.mask(), decay=decay, backend=call.backend
                )
            else:
                ke, ve, encoded = prefix
                y, new = kernels.prefix_linear_attention(
                    q, k, v, ke, ve, mask=call.mask(), mask_enc=encoded, decay=decay, backend=call.backend
                )
            if scale is not None:
                y = y * scale.to(y.dtype)[..., None]
        return self.out_proj(y.flatten(-2)), new

    def step(self, x: Tensor, state: TaylorState, call: Call) -> Tensor:
        q, k, v = self._split(self.proj_q(x)), self._split(self.proj_k(x)), self._split(self.proj_v(x))
        scale, decay = self._decay(x, call)
        with no_autocast(x):
            y = kernels.taylor_linear_attention_step(q, k, v, state, decay=decay, backend=call.backend)
            if scale is not None:
                y = y * scale.to(y.dtype)[..., None]
        out: Tensor = self.out_proj(y.flatten(-2))
        return out

    def _decay(self, x: Tensor, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """(the numerator's scale, a_h), both None for a layer without decay."""
        return (None, None) if self.decay_proj is None else (self.decay_proj(x), call.decay)

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        return StateBytes(recurrent=self.heads * kernels.num_features(self.feature_dim) * (self.head_dim + 1) * 4)
