"""Softmax attention over a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from jrt_eval import kernels
from jrt_eval.kernels import WindowState
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.attention import AttentionConfig, ProjectedAttention, read_attention
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, ModelFacts, no_autocast
from jrt_eval.models.recurrent.reading import Section

LARGEST_WINDOW = 2**20  # the state has a slot per key, whatever the length of the sequence


@dataclass(frozen=True)
class SlidingWindowConfig(AttentionConfig):
    kind: ClassVar[str] = "sliding_window"

    window: int = 1  # keys that a query sees, its own included

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> SlidingWindowConfig:
        # Query i sees the keys from i - window_size // 2 to i.
        window = section.size("window_size", LARGEST_WINDOW) // 2 + 1
        return cls(**read_attention(section, facts), window=window)

    def build(self, d_model: int) -> Mixer:
        return SlidingWindow(d_model, self)


class SlidingWindow(ProjectedAttention):
    """Each query sees the last `window` keys, its own included. State: a ring of them."""

    def __init__(self, dim: int, config: SlidingWindowConfig) -> None:
        super().__init__(dim, config)
        self.window = config.window

    def forward(self, x: Tensor, state: WindowState | None, call: Call) -> tuple[Tensor, WindowState]:
        q, k, v = self._qkv(x, call)
        with no_autocast(x):
            y, new = kernels.sliding_window_attention(
                q, k, v, self.window, state, lengths=call.lengths, backend=call.backend
            )
        return self.out_proj(y.flatten(-2)), new

    def step(self, x: Tensor, state: WindowState, call: Call) -> Tensor:
        q, k, v = self._qkv(x, call)
        with no_autocast(x):
            y = kernels.sliding_window_attention_step(q, k, v, state, backend=call.backend)
        out: Tensor = self.out_proj(y.flatten(-2))
        return out

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        return StateBytes(attention=2 * self.window * self.heads * self.head_dim * itemsize + 8)
