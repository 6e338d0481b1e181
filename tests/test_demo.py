"""The demo's table and bar chart. The whole demo runs in CI as `make demo`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from jrt_eval import demo


@pytest.fixture
def wide() -> pd.DataFrame:
    """What `demo.table` gives for two models."""
    rows = [("mini-attn", "mini", 1.0, 1.0), ("mini-based", "mini", 0.75, 1.0)]
    columns = {(kind, variant): [] for kind in ("n", "stderr", "value") for variant in ("once", "twice")}
    for _, _, once, twice in rows:
        for variant, value in (("once", once), ("twice", twice)):
            columns["value", variant].append(value)
            columns["stderr", variant].append(0.05)
            columns["n", variant].append(40.0)
    index = pd.MultiIndex.from_tuples([row[:2] for row in rows], names=["model", "dataset"])
    return pd.DataFrame(columns, index=index)


def test_the_legend_covers_no_bar(wide: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = demo.chart(wide)
    figure.savefig(tmp_path / "chart.png")
    (legend,), (axes,) = figure.legends, figure.axes
    assert [text.get_text() for text in legend.get_texts()] == ["read once", "read twice"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(bar.get_window_extent()) for bar in axes.patches)
    assert box.y0 >= axes.get_window_extent().y1
    assert sorted(bar.get_height() for bar in axes.patches) == [75, 100, 100, 100]


def test_the_table_shows_both_readings_and_the_gain(
    wide: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "table", lambda runs: wide)
    demo.show(tmp_path)
    line = capsys.readouterr().out.splitlines()[3]
    assert line.split() == ["mini-based", "mini", "40", "75.0", "±", "5.0", "100.0", "±", "5.0", "+25.0"]


def test_one_document_has_no_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("models/mini-attn", "mini", variant, "contains", 1.0, None, 1) for variant in ("once", "twice")]
    columns = ["model", "dataset", "variant", "metric", "value", "stderr", "n"]
    scores = pd.DataFrame(rows, columns=columns).assign(task="jrt_mini").astype({"stderr": float})
    monkeypatch.setattr("jrt_eval.analysis.load_results", lambda runs: SimpleNamespace(scores=scores))
    demo.show(tmp_path)
    assert capsys.readouterr().out.splitlines()[2].split() == ["mini-attn", "mini", "1", "100.0", "100.0", "+0.0"]
    pytest.importorskip("matplotlib")
    demo.chart(demo.table(tmp_path)).savefig(tmp_path / "chart.png")
