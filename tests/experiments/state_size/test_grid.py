"""Grids: the paper's sizes, and presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from state_size_helpers import SMALL

from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size.grid import PRESETS, GridPoint


def test_pairs_take_the_place_of_the_papers() -> None:
    settings = replace(SMALL, pairs=((2, 16), (16, 2), (4, 8)))
    assert settings.training_sizes == settings.evaluation_sizes == ((2, 16), (16, 2), (4, 8), (8, 4))


def test_presets() -> None:
    paper = PRESETS["paper"]
    assert len(paper.points()) == 5 * 4 * 2
    assert len(paper.points("causal")) == 5 * 4
    assert (len(paper.settings.training_sizes), len(paper.settings.evaluation_sizes)) == (12, 20)
    changed = PRESETS["marked"].changed(widths=(8,), steps=5, marked=False, rates=None)
    assert (changed.widths, changed.features) == ((8,), (1, 2, 4))
    assert (changed.settings.steps, changed.settings.marked, changed.settings.rates) == (5, False, (3e-3, 6e-3))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0}, {"steps": 10**9}, {"batch": -1}, {"vocabulary": 10**12}, {"rates": ()}, {"rates": (float("nan"),)},
        {"rates": (-1.0,)}, {"seeds": (-1,)}, {"warmup": 2.0}, {"curriculum": float("nan")}, {"weight_decay": -1.0},
        {"beta2": 1.0}, {"hold": 1.0}, {"sharp": 0.0}, {"limit": 8}, {"pairs": ((4, 4),)}, {"pairs": ((0, 4),)},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    (name,) = change
    with pytest.raises(UserError, match=name):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_impossible_points_are_refused() -> None:
    for width, features in [(7, 2), (0, 2), (-2, 2), (1 << 30, 2), (8, 0), (8, 10**9)]:
        with pytest.raises(UserError):
            GridPoint(width, features, True)
