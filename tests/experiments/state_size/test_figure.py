"""The grid's data frame, tables and figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from state_size_helpers import CPU, SMALL

from jrt_eval.experiments.state_size import figure
from jrt_eval.experiments.state_size.grid import GridPoint
from jrt_eval.experiments.state_size.points import read_points, run_grid


def test_frame_and_figure(tmp_path: Path) -> None:
    run_grid([GridPoint(8, 2, True)], SMALL, tmp_path, CPU, lambda *_: 0, lambda _: 0)
    frame = figure.frame(read_points(tmp_path))
    assert len(frame) == len(SMALL.evaluation_sizes) * 2
    assert frame["accuracy"].between(0, 1).all()
    means = figure.by_order(frame)
    assert means["best"].sum() == 1
    best = means.query("best").iloc[0]
    pairs = figure.by_pair(frame)
    assert len(pairs) == len(SMALL.evaluation_sizes) / 2
    assert pairs["difference"].mean() == pytest.approx(best["difference"])
    assert (pairs["guess"] == 1 / pairs["shorter"]).all()
    assert figure.pair_summary(frame).count("\n") == len(pairs)
    (line,) = figure.summary(frame).splitlines()[1:]
    assert line.endswith(f"{means['difference'].mean():+.3f}{f'{(means.difference > 0).sum()} of 2':>18}")
    figure.draw(frame, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
