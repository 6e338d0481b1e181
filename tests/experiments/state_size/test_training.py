"""Learning rates, the curriculum over sizes, and that the models learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from state_size_helpers import CPU, SMALL

from jrt_eval.experiments.state_size import training
from jrt_eval.experiments.state_size.examples import training_examples
from jrt_eval.experiments.state_size.grid import GridPoint, GridSettings


def test_a_rate_is_held_and_falls() -> None:
    settings = replace(SMALL, steps=100, warmup=0.1, hold=0.5)
    shares = [training._share_of_rate(settings, step) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares[9:50] == [1.0] * 41
    assert shares[49:] == sorted(shares[49:], reverse=True)
    assert shares[-1] == pytest.approx(0)


def test_a_curriculum_opens_small_sets_first() -> None:
    sizes = tuple(sorted(replace(SMALL, vocabulary=300, limit=128).training_sizes, key=max))
    opened = [training._open_sizes(sizes, 0.5, p) for p in (0.0, 0.2, 0.3, 0.49, 0.5, 1.0)]
    assert opened == sorted(opened)
    assert sizes[: opened[0]] == ((4, 16), (16, 4))
    assert opened[-1] == opened[-2] == len(sizes)
    assert training._open_sizes(sizes, 0.0, 0.0) == len(sizes)


def test_a_point_learns() -> None:
    """The loss of sets of 4 and 16 falls well under that of guessing among the vocabulary."""
    settings = GridSettings(
        rates=(4e-3,), seeds=(0,), steps=120, batch=32, examples=2000, vocabulary=80, limit=32, curriculum=1.0
    )
    examples = training_examples(settings, CPU)
    _, copies, history = training.train_point(GridPoint(16, 4, False), settings, examples, CPU, lambda *_: 0)
    assert copies == [(4e-3, 0)]
    assert np.mean([loss for _, loss in history[-10:]]) < 0.9 * history[0][1]
