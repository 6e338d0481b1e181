"""Examples of set disjointness as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jrt_eval.data import set_disjointness as sets
from jrt_eval.experiments.state_size.grid import GridSettings, Sizes

_TRAINING_SEED, _EVALUATION_SEED = 0, 1


@dataclass
class Examples:
    """For each pair of sizes: inputs (count, length) and answers (count,), on the device that trains."""

    inputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    answers: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def training_examples(settings: GridSettings, device: torch.device) -> Examples:
    return _make(settings.training_sizes, settings.examples, _TRAINING_SEED, settings.vocabulary, device)


def evaluation_examples(settings: GridSettings, device: torch.device) -> Examples:
    sizes, count = settings.evaluation_sizes, settings.evaluation_examples
    return _make(sizes, count, _EVALUATION_SEED, settings.vocabulary, device)


def _make(sizes: Sizes, count: int, seed: int, vocabulary: int, device: torch.device) -> Examples:
    made = Examples()
    for first, second in sizes:
        inputs, answers = sets.examples(first, second, count, seed, vocabulary)
        made.inputs[first, second] = torch.from_numpy(inputs).to(device)
        made.answers[first, second] = torch.from_numpy(answers).to(device)
    return made
