"""The sequence mixers, each one function of a state (equations of spec/models in the docstrings).

    q, k, v    queries, keys, values           phi   the second-order Taylor feature map (jrt_eval.kernels)
    ke, ve     keys and values of the encoder  M     encoder length (`enc_length`)
    state      all that later tokens need of earlier ones

`forward(x, state, at)` takes x (batch, length, d) and returns y (batch, length, d) and the state after each row's
last valid token; the state given is left as it was, None starts a sequence. `step(x, state, at)` takes one token per
row (batch, d) and updates the state in place. Rows are padded on the right: outputs at valid positions cannot see
padding (all mixers are causal), and `At.lengths` keeps it out of the states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels import TaylorState, WindowState
from jrt_eval.models.recurrent.config import MixerConfig
from jrt_eval.models.recurrent.layers import rotary_angles, rotate


@dataclass
class KVState:
    """Keys and values of softmax attention, which grow with the sequence (batch, capacity, heads, head_dim)."""

    k: Tensor
    v: Tensor
    length: Tensor  # (batch,) tokens held by each row
    used: int  # the longest row's, known without asking the device


MixerState: TypeAlias = TaylorState | WindowState | KVState | Tensor


@dataclass
class At:
    """Where the tokens of one call stand; the same for every layer.

    positions (batch, length): of each token in its row. lengths (batch,): valid tokens of this call, None if all are.
    encoded (batch,): tokens that the prefix encoder reads, at the start of a sequence. pads (batch,): leading tokens
    whose k and ke are zeroed (left padding of JRT prompts).
    """

    positions: Tensor
    lengths: Tensor | None = None
    encoded: Tensor | None = None
    max_encoded: int = 0
    pads: Tensor | None = None
    backend: str = "auto"
    _angles: dict[tuple[int, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def angles(self, rotary_dim: int, base: float) -> tuple[Tensor, Tensor]:
        """cos and sin at the positions, computed once per call."""
        key = (rotary_dim, base)
        if key not in self._angles:
            self._angles[key] = rotary_angles(self.positions, rotary_dim, base)
        return self._angles[key]

    def mask(self) -> Tensor | None:
        """(batch, length), True at valid tokens."""
        if self.lengths is None:
            return None
        at = torch.arange(self.positions.shape[1], device=self.positions.device)
        return at < self.lengths[:, None]


def _no_autocast(x: Tensor) -> torch.autocast:
    # States, feature maps and softmax stay in float32: autocast would run their products in bfloat16.
    return torch.autocast(x.device.type, enabled=False)


class ShortConvolution(nn.Module):
    """y = out_proj(silu(conv(a)) * b), [a; b] = in_proj(x), conv depthwise and causal. State: the last inputs of
    conv.
    """

    def __init__(self, dim: int, config: MixerConfig, conv_bias: bool) -> None:
        super().__init__()
        inner = (4 if config.expand is None else config.expand) * dim // 2
        self.in_proj = nn.Linear(dim, 2 * inner, bias=config.bias_in)
        self.conv = nn.Module()  # the released files say conv.conv
        self.conv.conv = nn.Conv1d(inner, inner, config.kernel_size, groups=inner, bias=conv_bias)
        self.out_proj = nn.Linear(inner, dim, bias=config.bias_out)

    def forward(self, x: Tensor, state: Tensor | None, at: At) -> tuple[Tensor, Tensor]:
        a, b = self.in_proj(x).chunk(2, -1)
        conv: Any = self.conv.conv
        with _no_autocast(x):
            y, state = kernels.gated_short_conv(
                a, b, conv.weight, conv.bias, state, lengths=at.lengths, backend=at.backend
            )
        return self.out_proj(y), state

    def step(self, x: Tensor, state: Tensor, at: At) -> Tensor:
        a, b = self.in_proj(x).chunk(2, -1)
        conv: Any = self.conv.conv
        with _no_autocast(x):
            y = kernels.gated_short_conv_step(a, b, conv.weight, conv.bias, state, backend=at.backend)
        out: Tensor = self.out_proj(y)
        return out

    def state_size(self, length: int, itemsize: int) -> int:
        conv: Any = self.conv.conv
        return int((conv.kernel_size[0] - 1) * conv.in_channels * 4)


class LinearAttention(nn.Module):
    """Causal linear attention, with prefix encoder (JRT-RNN) where `enc_length` is set, or with decay (Based).

    y_i = phi(q_i) . [sum_{j<=i} phi(k_j) v_j + sum_{j<M} phi(ke_j) ve_j] / (the same without v + 1e-12).
    State: both sums, encoder included, for good. With decay the numerator's terms shrink by a_h per step and are
    scaled by (decay_proj x_i)_h; the denominator's are not.
    """

    def __init__(self, dim: int, config: MixerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.feature_dim = config.num_heads, config.head_dim, config.feature_dim
        self.enc_length, self.mask_pads = config.enc_length, config.mask_pads
        self.proj_q = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
        self.proj_k = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
        self.proj_v = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        if config.enc_length:
            self.proj_k_enc = nn.Linear(dim, self.heads * self.feature_dim, bias=False)
            self.proj_v_enc = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.decay_proj = nn.Linear(dim, self.heads, bias=False) if config.decay else None
        self.out_proj = nn.Linear(self.heads * self.head_dim, dim, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _prefix(self, x: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor] | None:
        """The encoder's keys, values and mask over its region, or None where nothing is encoded."""
        if not self.enc_length or not at.max_encoded or at.encoded is None:
            return None
        x = x[:, : at.max_encoded]
        ke, ve = self._split(self.proj_k_enc(x)), self._split(self.proj_v_enc(x))
        place = torch.arange(x.shape[1], device=x.device)
        if at.pads is not None and self.mask_pads:
            ke = ke.masked_fill((place < at.pads[:, None])[..., None, None], 0)
        return ke, ve, place < at.encoded[:, None]

    def forward(
        self, x: Tensor, state: TaylorState | None, at: At, decay: Tensor | None = None
    ) -> tuple[Tensor, TaylorState]:
        q, k, v = self._split(self.proj_q(x)), self._split(self.proj_k(x)), self._split(self.proj_v(x))
        prefix = None
        if state is None:
            prefix = self._prefix(x, at)
            if at.pads is not None and self.enc_length and self.mask_pads:
                place = torch.arange(x.shape[1], device=x.device)
                k = k.masked_fill((place < at.pads[:, None])[..., None, None], 0)
        scale = None if self.decay_proj is None else self.decay_proj(x)
        with _no_autocast(x):
            if prefix is None:
                y, new = kernels.taylor_linear_attention(
                    q, k, v, state, mask=at.mask(), decay=decay, backend=at.backend
                )
            else:
                ke, ve, encoded = prefix
                y, new = kernels.prefix_linear_attention(
                    q, k, v, ke, ve, mask=at.mask(), mask_enc=encoded, decay=decay, backend=at.backend
                )
            if scale is not None:
                y = y * scale.to(y.dtype)[..., None]
        return self.out_proj(y.flatten(-2)), new

    def step(self, x: Tensor, state: TaylorState, at: At, decay: Tensor | None = None) -> Tensor:
        q, k, v = self._split(self.proj_q(x)), self._split(self.proj_k(x)), self._split(self.proj_v(x))
        scale = None if self.decay_proj is None else self.decay_proj(x)
        with _no_autocast(x):
            y = kernels.taylor_step(q, k, v, state, decay=decay, backend=at.backend)
            if scale is not None:
                y = y * scale.to(y.dtype)[..., None]
        out: Tensor = self.out_proj(y.flatten(-2))
        return out

    def state_size(self, length: int, itemsize: int) -> int:
        return self.heads * kernels.num_features(self.feature_dim) * (self.head_dim + 1) * 4


class _Attention(nn.Module):
    """Projections and rotary positions of both softmax mixers; rows of Wqkv are ordered (q|k|v, head, dim)."""

    def __init__(self, dim: int, config: MixerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.rotary_dim, self.rotary_base = config.rotary_dim, config.rotary_base
        self.Wqkv = nn.Linear(dim, 3 * dim, bias=config.bias_in)
        self.out_proj = nn.Linear(dim, dim, bias=config.bias_out)

    def _qkv(self, x: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        if self.rotary_dim:
            cos, sin = at.angles(self.rotary_dim, self.rotary_base)
            if x.dim() == 2:  # a step: (batch, d)
                cos, sin = cos[:, 0], sin[:, 0]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v


class SlidingWindow(_Attention):
    """Softmax attention over the last `window` keys, the query's own included. State: a ring of them."""

    def __init__(self, dim: int, config: MixerConfig) -> None:
        super().__init__(dim, config)
        self.window = config.window

    def forward(self, x: Tensor, state: WindowState | None, at: At) -> tuple[Tensor, WindowState]:
        q, k, v = self._qkv(x, at)
        with _no_autocast(x):
            y, new = kernels.sliding_window_attention(
                q, k, v, self.window, state, lengths=at.lengths, backend=at.backend
            )
        return self.out_proj(y.flatten(-2)), new

    def step(self, x: Tensor, state: WindowState, at: At) -> Tensor:
        q, k, v = self._qkv(x, at)
        with _no_autocast(x):
            y = kernels.sliding_window_step(q, k, v, state, backend=at.backend)
        out: Tensor = self.out_proj(y.flatten(-2))
        return out

    def state_size(self, length: int, itemsize: int) -> int:
        return 2 * self.window * self.heads * self.head_dim * itemsize + 8


class Attention(_Attention):
    """Softmax attention over all earlier tokens (Transformer++). State: all keys and values."""

    def forward(self, x: Tensor, state: KVState | None, at: At) -> tuple[Tensor, KVState]:
        q, k, v = self._qkv(x, at)
        batch, length = x.shape[:2]
        lengths = torch.full((batch,), length, device=x.device) if at.lengths is None else at.lengths
        if state is None:
            y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
            return self.out_proj(y.transpose(1, 2).flatten(-2)), KVState(k, v, lengths.clone(), length)
        new = KVState(
            _longer(state.k, state.used, length),
            _longer(state.v, state.used, length),
            state.length + lengths,
            state.used + length,
        )
        # Row b's tokens follow its own last one; what stands behind a row's end is overwritten later or never seen.
        place = state.length[:, None] + torch.arange(length, device=x.device)
        index = place[..., None, None].expand_as(k)
        new.k.scatter_(1, index, k.to(new.k.dtype))
        new.v.scatter_(1, index, v.to(new.v.dtype))
        sees = torch.arange(new.k.shape[1], device=x.device) <= place[..., None]
        return self.out_proj(self._attend(q, new, sees)), new

    def step(self, x: Tensor, state: KVState, at: At) -> Tensor:
        q, k, v = (t[:, None] for t in self._qkv(x, at))
        if state.used >= state.k.shape[1]:
            more = max(64, state.used // 4)
            state.k, state.v = _longer(state.k, state.used, more), _longer(state.v, state.used, more)
        index = state.length[:, None, None, None].expand_as(k)
        state.k.scatter_(1, index, k.to(state.k.dtype))
        state.v.scatter_(1, index, v.to(state.v.dtype))
        state.used += 1
        seen = KVState(state.k[:, : state.used], state.v[:, : state.used], state.length, state.used)
        sees = torch.arange(state.used, device=x.device) <= state.length[:, None, None]
        y: Tensor = self.out_proj(self._attend(q, seen, sees)[:, 0])
        state.length = state.length + 1
        return y

    def _attend(self, q: Tensor, state: KVState, sees: Tensor) -> Tensor:
        """q (batch, length, heads, dim), sees (batch, length, held) -> (batch, length, heads * dim)."""
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), state.k.transpose(1, 2), state.v.transpose(1, 2), attn_mask=sees[:, None]
        )
        return y.transpose(1, 2).flatten(-2)

    def state_size(self, length: int, itemsize: int) -> int:
        return 2 * length * self.heads * self.head_dim * itemsize + 8


def _longer(x: Tensor, used: int, more: int) -> Tensor:
    """A copy of x (batch, capacity, ...) with room for `more` beyond `used`."""
    y = x.new_zeros(x.shape[0], used + more, *x.shape[2:])
    y[:, :used] = x[:, :used]
    return y


def build_mixer(dim: int, config: MixerConfig, conv_bias: bool) -> nn.Module:
    """The module of one layer's mixer; `conv_bias`: the file has a bias for its convolution."""
    if config.kind == "convolution":
        return ShortConvolution(dim, config, conv_bias)
    if config.kind in ("linear_attention", "prefix_linear_attention"):
        return LinearAttention(dim, config)
    return SlidingWindow(dim, config) if config.kind == "sliding_window" else Attention(dim, config)
