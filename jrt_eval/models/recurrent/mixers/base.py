"""What all sequence mixers share: their interface, their config, and the facts of one forward call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.layers import rotary_angles
from jrt_eval.models.recurrent.reading import Section

Shape = tuple[int, ...]


@dataclass
class Call:
    """Token positions, lengths and padding of one forward call; the same for every layer.

    positions (batch, length): of each token in its row. lengths (batch,): valid tokens of this call, None if all are.
    encoded (batch,): tokens that the prefix encoder reads, at the start of a sequence. pads (batch,): leading tokens
    whose k and ke are zeroed (left padding of JRT prompts). decay (heads,): a_h of Based's decay, where the model has it.
    """

    positions: Tensor
    lengths: Tensor | None = None
    encoded: Tensor | None = None
    max_encoded: int = 0
    pads: Tensor | None = None
    backend: str = "auto"
    decay: Tensor | None = None
    _angles: dict[tuple[int, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def angles(self, rotary_dim: int, base: float) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding at the positions, computed once per call."""
        key = (rotary_dim, base)
        if key not in self._angles:
            self._angles[key] = rotary_angles(self.positions, rotary_dim, base)
        return self._angles[key]

    def mask(self) -> Tensor | None:
        """(batch, length), True at valid tokens; None if all are valid."""
        if self.lengths is None:
            return None
        place = torch.arange(self.positions.shape[1], device=self.positions.device)
        return place < self.lengths[:, None]


@dataclass(frozen=True)
class ModelFacts:
    """What the top level of a released config says to its mixers."""

    d_model: int
    n_head: int
    head_dim: int
    rotary_fraction: float
    rotary_base: float
    qkv_bias: bool
    out_bias: bool
    fixed_decay: bool
    enc_length: int | None

    @property
    def rotary_dim(self) -> int:
        return int(self.rotary_fraction * self.head_dim)


@dataclass(frozen=True)
class MixerConfig(ABC):
    """One layer's mixer. A subclass reads itself from a config and builds its module."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, section: Section, facts: ModelFacts) -> MixerConfig:
        """The mixer that `section` of a released config describes. Raises `UserError` for what is not supported."""

    def complete(self, shape_of: Callable[[str], Shape | None]) -> MixerConfig:
        """This config with what only the weight file says; `shape_of` gives the shape of one of the layer's tensors."""
        return self

    @abstractmethod
    def build(self, d_model: int) -> Mixer:
        """The module, with uninitialised weights."""


class Mixer(nn.Module, ABC):
    """A sequence mixer: a function of its input and a state.

    Rows are padded on the right. All mixers are causal, so outputs at valid positions do not depend on padding, and
    `Call.lengths` keeps padding out of the states.
    """

    @abstractmethod
    def forward(self, x: Tensor, state: Any, call: Call) -> tuple[Tensor, Any]:
        """x (batch, length, d) -> y (batch, length, d), and the state after each row's last valid token.

        `state` is not modified; None starts a sequence. A state is a tensor, a named tuple of tensors (batch first), or
        a `KVState`.
        """

    @abstractmethod
    def step(self, x: Tensor, state: Any, call: Call) -> Tensor:
        """One token per row: x (batch, d) -> y (batch, d); `state` is updated in place."""

    @abstractmethod
    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        """Bytes of one sequence's state after `length` tokens; `itemsize`: bytes of one of the model's numbers."""


def no_autocast(x: Tensor) -> torch.autocast:
    """Turns autocast off: states, feature maps and softmax are computed in float32 also under autocast."""
    return torch.autocast(x.device.type, enabled=False)
