"""The grid of the set-disjointness experiment (JRT paper, figure 2): which models, trained how.

A point of the grid is a width, a feature dimension, and causal or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from jrt_eval.data import set_disjointness as sets
from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size.stacked import HEADS, state_bytes

Sizes = tuple[tuple[int, int], ...]
_LARGEST = 1 << 20  # of the vocabulary, counts and widths: beyond this they would fill the memory


@dataclass(frozen=True)
class GridSettings:
    """The settings that all points share. The defaults are the paper's, except `steps` (48 epochs are 90,000 there).

    rates: peak learning rates; each is combined with each seed. A seed determines a model's weights and the order of its
        examples; all models have the same examples.
    limit: sets larger than this are left out, in training and in evaluation.
    curriculum: share of the steps over which the sizes are introduced, smallest first (the paper has all from the start).
    hold: share of the steps before the learning rate begins to fall (none in the paper).
    marked, sharp: see `jrt_eval.experiments.state_size.stacked.Stack`.
    pairs: sizes (|A|, |B|) to train and evaluate on, in both orders, instead of the paper's.
    """

    rates: tuple[float, ...] = (1e-4, 5e-4, 8e-4)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 90_000
    batch: int = 128
    warmup: float = 0.02
    curriculum: float = 0.0
    weight_decay: float = 0.1
    examples: int = sets.TRAINING_EXAMPLES
    evaluation_examples: int = sets.EVALUATION_EXAMPLES
    vocabulary: int = sets.VOCABULARY
    limit: int = 1024
    hold: float = 0.0
    beta2: float = 0.999
    marked: bool = False
    sharp: float = 1.0
    pairs: Sizes = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "examples", "evaluation_examples", "limit", "vocabulary"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise UserError(f"{name}: must be from 1 to {_LARGEST}, got {getattr(self, name)}")
        for name in ("curriculum", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: a share of the steps, from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.hold < 1:
            raise UserError(f"hold: a share of the steps, from 0 to less than 1, got {self.hold}")
        if not 0 < self.beta2 < 1:
            raise UserError(f"beta2: must be between 0 and 1, got {self.beta2}")
        if not 0 <= self.weight_decay <= 100:
            raise UserError(f"weight_decay: must be from 0 to 100, got {self.weight_decay}")
        self._check_copies()
        self._check_sizes()

    def _check_copies(self) -> None:
        if not self.rates or not self.seeds:
            raise UserError("rates and seeds: give at least one of each")
        if any(not 0 < rate <= 100 for rate in self.rates):
            raise UserError(f"rates: must be above 0 and at most 100, got {self.rates}")
        if any(seed < 0 for seed in self.seeds):
            raise UserError(f"seeds: must be at least 0, got {self.seeds}")
        if not 0 < self.sharp < math.inf:
            raise UserError(f"sharp: must be above 0, got {self.sharp}")

    def _check_sizes(self) -> None:
        if any(size < 1 for pair in self.pairs for size in pair):
            raise UserError("pairs: a set has at least one element")
        if any(first == second for first, second in self.pairs):
            raise UserError("pairs: the two orders of a pair are compared, so its sets must differ in size")
        if not self.training_sizes or not self.evaluation_sizes:
            raise UserError(f"limit: no pair of sets has sizes up to {self.limit}; the smallest needs 32")
        largest = max(max(pair) for pair in (*self.training_sizes, *self.evaluation_sizes))
        if largest > (half := (self.vocabulary - sets.RESERVED) // 2):
            raise UserError(f"vocabulary: {self.vocabulary} has {half} tokens for a set of {largest}; lower limit")

    @property
    def training_sizes(self) -> Sizes:
        """Pairs of sizes to train on, in both orders."""
        both = tuple(order for pair in self.pairs for order in (pair, pair[::-1]))
        return tuple(dict.fromkeys(pair for pair in both or sets.TRAINING if max(pair) <= self.limit))

    @property
    def evaluation_sizes(self) -> Sizes:
        """The paper's evaluation pairs, or `pairs`. With a limit also the training pairs, since few others are left."""
        if self.pairs:
            return self.training_sizes
        pairs = sets.EVALUATION if self.limit >= 1024 else (*sets.EVALUATION, *sets.TRAINING)
        return tuple(dict.fromkeys(pair for pair in pairs if max(pair) <= self.limit))

    def differences(self, other: GridSettings) -> list[str]:
        """The names of the settings that differ."""
        return [name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class GridPoint:
    """A model shape: width, feature dimension, causal or not."""

    width: int
    feature_dim: int
    causal: bool

    def __post_init__(self) -> None:
        if not HEADS <= self.width <= _LARGEST or self.width % HEADS:
            raise UserError(f"widths: {self.width} does not split into {HEADS} heads")
        if not 1 <= self.feature_dim <= 1024:
            raise UserError(f"feature dims: must be from 1 to 1024, got {self.feature_dim}")

    @property
    def name(self) -> str:
        return f"width{self.width}-features{self.feature_dim}-{'causal' if self.causal else 'noncausal'}"

    @property
    def state_bytes(self) -> int:
        return state_bytes(self.width, self.feature_dim)


@dataclass(frozen=True)
class Preset:
    """Settings with the widths and feature dimensions of a grid."""

    settings: GridSettings
    widths: tuple[int, ...]
    features: tuple[int, ...]

    def points(self, only: str | None = None) -> list[GridPoint]:
        """All points of the grid; only: causal or noncausal."""
        kinds = [kind for kind in (True, False) if only is None or (only == "causal") == kind]
        return [GridPoint(w, f, causal) for w in self.widths for f in self.features for causal in kinds]

    def changed(self, widths: Any = None, features: Any = None, **settings: Any) -> Preset:
        """The preset with other values; None keeps the preset's."""
        given = {key: value for key, value in settings.items() if value is not None}
        return Preset(replace(self.settings, **given), widths or self.widths, features or self.features)


PRESETS = {
    "small": Preset(
        GridSettings(rates=(1e-3, 2e-3, 4e-3), steps=6000, vocabulary=260, limit=128, curriculum=0.5),
        widths=(16, 32, 64),
        features=(2, 4, 8, 16),
    ),
    "marked": Preset(
        GridSettings(
            rates=(3e-3, 6e-3),
            seeds=(0, 1, 2),
            steps=8000,
            vocabulary=100,
            pairs=((4, 16), (2, 40), (4, 40)),
            curriculum=0.15,
            hold=0.6,
            beta2=0.98,
            weight_decay=0.01,
            sharp=4.0,
            marked=True,
        ),
        widths=(16, 32),
        features=(1, 2, 4),
    ),
    "paper": Preset(GridSettings(), widths=(36, 48, 64, 96, 128), features=(4, 8, 16, 24)),
}
