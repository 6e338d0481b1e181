"""Softmax attention over all earlier tokens (Transformer++)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.kernels.rotary import rotary
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts
from jrt_eval.models.recurrent.reading import Section, short


@dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    kind: ClassVar[str] = "attention"

    num_heads: int
    head_dim: int
    bias_in: bool = False  # Wqkv
    bias_out: bool = False  # out_proj
    rotary_dim: int = 0
    rotary_base: float = 10000.0

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> AttentionConfig:
        return cls(**read_attention(section, facts))

    def build(self, d_model: int) -> Mixer:
        return Attention(d_model, self)


def read_attention(section: Section, facts: ModelFacts) -> dict[str, Any]:
    """The fields of `AttentionConfig`, for both softmax mixers; heads and rotary embedding come from the top level."""
    if facts.head_dim * facts.n_head != facts.d_model:
        raise section.error(f"n_embd {facts.d_model} is not n_head {facts.n_head} times head_dim {facts.head_dim}")
    if facts.rotary_dim % 2 and facts.rotary_dim == facts.head_dim:
        raise section.error(
            f"rotary_emb_fraction {facts.rotary_fraction} of head_dim {facts.head_dim} is odd: one more dim than "
            "there is would rotate"
        )
    section.only("causal", True, default=True)
    section.only("cross_attn", False, default=False)
    section.integer("num_heads")  # as in the released code, n_head of the top level counts
    own = {
        "rotary_emb_dim": facts.rotary_dim,
        "rotary_emb_base": facts.rotary_base,
        "rotary_emb_fraction": facts.rotary_fraction,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "softmax_scale": None,
    }
    for key, value in own.items():
        if (given := section.get(key)) is not None and given != value:
            raise section.error(f"{key} is {short(given)}, only the model's own value {value!r} is supported")
    return {
        "num_heads": facts.n_head,
        "head_dim": facts.head_dim,
        "bias_in": section.flag("qkv_proj_bias", facts.qkv_bias),
        "bias_out": section.flag("out_proj_bias", facts.out_bias),
        "rotary_dim": facts.rotary_dim,
        "rotary_base": facts.rotary_base,
    }


@dataclass
class KVState:
    """Keys and values of softmax attention, which grow with the sequence (batch, capacity, heads, head_dim)."""

    k: Tensor
    v: Tensor
    length: Tensor  # (batch,) tokens in each row
    used: int  # tokens in the longest row, known without a transfer from the device


class ProjectedAttention(Mixer):
    """Projections and rotary embedding of both softmax mixers; rows of Wqkv are ordered (q|k|v, head, dim)."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.rotary_dim, self.rotary_base = config.rotary_dim, config.rotary_base
        self.Wqkv = nn.Linear(dim, 3 * dim, bias=config.bias_in)
        self.out_proj = nn.Linear(dim, dim, bias=config.bias_out)

    def _qkv(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        if self.rotary_dim:
            cos, sin = call.angles(self.rotary_dim, self.rotary_base)
            if x.dim() == 2:  # a decode step: (batch, d)
                cos, sin = cos[:, 0], sin[:, 0]
            q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        return q, k, v


class Attention(ProjectedAttention):
    """State: all keys and values."""

    def forward(self, x: Tensor, state: KVState | None, call: Call) -> tuple[Tensor, KVState]:
        y, new = attend(*self._qkv(x, call), state, call)
        return self.out_proj(y), new

    def step(self, x: Tensor, state: KVState, call: Call) -> Tensor:
        y: Tensor = self.out_proj(attend_step(*self._qkv(x, call), state))
        return y

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        return StateBytes(attention=2 * length * self.heads * self.head_dim * itemsize + 8)


def attend(q: Tensor, k: Tensor, v: Tensor, state: KVState | None, call: Call) -> tuple[Tensor, KVState]:
    """Causal softmax attention of q, k, v (batch, length, heads, dim) behind `state`: y (batch, length, heads * dim)."""
    batch, length = q.shape[:2]
    lengths = torch.full((batch,), length, device=q.device) if call.lengths is None else call.lengths
    if state is None:
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return y.transpose(1, 2).flatten(-2), KVState(k, v, lengths.clone(), length)
    new = KVState(
        _longer(state.k, state.used, length),
        _longer(state.v, state.used, length),
        state.length + lengths,
        state.used + length,
    )
    # Row b's tokens follow its own last one. Slots behind a row's end are overwritten later or masked.
    place = state.length[:, None] + torch.arange(length, device=q.device)
    index = place[..., None, None].expand_as(k)
    new.k.scatter_(1, index, k.to(new.k.dtype))
    new.v.scatter_(1, index, v.to(new.v.dtype))
    sees = torch.arange(new.k.shape[1], device=q.device) <= place[..., None]
    return _masked_attention(q, new, sees), new


def attend_step(q: Tensor, k: Tensor, v: Tensor, state: KVState) -> Tensor:
    """One token of q, k, v (batch, heads, dim): y (batch, heads * dim); `state` is updated in place."""
    q, k, v = q[:, None], k[:, None], v[:, None]
    if state.used >= state.k.shape[1]:
        more = max(64, state.used // 4)
        state.k, state.v = _longer(state.k, state.used, more), _longer(state.v, state.used, more)
    index = state.length[:, None, None, None].expand_as(k)
    state.k.scatter_(1, index, k.to(state.k.dtype))
    state.v.scatter_(1, index, v.to(state.v.dtype))
    state.used += 1
    seen = KVState(state.k[:, : state.used], state.v[:, : state.used], state.length, state.used)
    sees = torch.arange(state.used, device=q.device) <= state.length[:, None, None]
    y = _masked_attention(q, seen, sees)[:, 0]
    state.length = state.length + 1
    return y


def _masked_attention(q: Tensor, state: KVState, sees: Tensor) -> Tensor:
    """q (batch, length, heads, dim), sees (batch, length, capacity) -> (batch, length, heads * dim)."""
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), state.k.transpose(1, 2), state.v.transpose(1, 2), attn_mask=sees[:, None]
    )
    return y.transpose(1, 2).flatten(-2)


def _longer(x: Tensor, used: int, more: int) -> Tensor:
    """A copy of x (batch, capacity, ...) with room for `more` tokens beyond `used`."""
    y = x.new_zeros(x.shape[0], used + more, *x.shape[2:])
    y[:, :used] = x[:, :used]
    return y
