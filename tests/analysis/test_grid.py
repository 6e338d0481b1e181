"""Depth grids: samples' own depth and context length, the table, the heat maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from made_runs import write_run

from jrt_eval.analysis import collect, compare_variants, length_table, load_results, prompt_table
from jrt_eval.analysis.grid import depth_grids, grid_table, has_grid
from jrt_eval.analysis.plots import grid_plot, inline_svg
from jrt_eval.cli import cli
from jrt_eval.errors import UserError

LENGTHS, DEPTHS = (512, 2048), (0.0, 0.5, 1.0)
ONCE = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]  # by length, then depth
TWICE = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def documents(prefix: str = "", rows: int = 1) -> list[dict[str, Any]]:
    cells = [(length, depth) for length in LENGTHS for depth in DEPTHS]
    return [
        {
            "question": f"q{row}", "value": "x", "jrt_row": len(cells) * row + at,
            f"{prefix}answer_depth": depth, f"{prefix}context_length": length,
        }
        for row in range(rows)
        for at, (length, depth) in enumerate(cells)
    ]  # fmt: skip


def write_grid(folder: Path, prefix: str = "", rows: int = 2, model: str = "a/b") -> Path:
    tasks = {"jrt_depth": ONCE * rows, "jrt_depth_twice": TWICE * rows}
    write_run(folder, model, tasks, documents=dict.fromkeys(tasks, documents(prefix, rows)))
    return folder


@pytest.mark.parametrize("prefix", ["", "jrt_"])
def test_each_cell_is_the_mean_of_its_pairs(prefix: str, tmp_path: Path) -> None:
    comparison = compare_variants(load_results(write_grid(tmp_path, prefix)))
    (grid,) = depth_grids(comparison)
    assert (grid.model, grid.lengths, grid.depths) == ("a/b", ["512", "2048"], ["0", "0.5", "1"])
    np.testing.assert_array_equal(grid.first, np.array(ONCE).reshape(2, 3).T)
    np.testing.assert_array_equal(grid.second, np.array(TWICE).reshape(2, 3).T)
    np.testing.assert_array_equal(grid.gain, [[0, 0], [1, 1], [0, 0]])
    assert (grid.n == 2).all()


def test_a_samples_own_length_survives_a_collect_that_renames_the_model(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs")
    out = tmp_path / "out"
    collect(tmp_path / "runs", out)
    write_run(tmp_path / "runs", "a/b", {"jrt_depth": ONCE}, config__model_dtype="torch.float16", name="other")
    write_run(tmp_path / "runs", "a/b", {"jrt_depth": ONCE}, config__model_dtype="torch.float32", name="third")
    again = collect(tmp_path / "runs", out)
    frame = load_results(out).predictions
    kept = frame[frame["answer_depth"].notna()]
    assert again.reused > 0
    assert set(kept["context_length"]) == set(LENGTHS)


def test_windows_of_one_row_are_paired_by_length_and_depth_in_any_order(tmp_path: Path) -> None:
    docs = [{**doc, "jrt_row": 0} for doc in documents()]
    tasks = {"jrt_depth": ONCE, "jrt_depth_twice": TWICE[::-1]}
    write_run(tmp_path, "a/b", tasks, documents={"jrt_depth": docs, "jrt_depth_twice": docs[::-1]})
    (grid,) = depth_grids(compare_variants(load_results(tmp_path)))
    np.testing.assert_array_equal(grid.gain, [[0, 0], [1, 1], [0, 0]])


def test_runs_with_other_lengths_or_depths_are_other_runs(tmp_path: Path) -> None:
    for lengths, depths in (
        ([512, 2048], [0, 1]),
        ([512, 4096], [0, 1]),
        ([512, 4096], [0, 0.5]),
        (512, 0.5),
        (512, None),
    ):
        metadata = {"jrt": {"context_length": lengths, "answer_depth": depths}}
        write_run(tmp_path, "a/b", {"jrt_depth": [1.0] * 4, "jrt_depth_twice": [1.0] * 4}, task={"metadata": metadata})
    results = load_results(tmp_path)
    assert results.scores["run_id"].nunique() == 5
    labels = set(prompt_table(results).flat()["model"])
    assert "a/b [context 512/2048, depth 0/1]" in labels
    assert "a/b [context 512/4096, depth 0/0.5]" in labels
    table = length_table(results)
    assert [c for c in table.headers() if "depth" in c] == ["depth 512"]
    assert any("several lengths" in note for note in table.notes)


def test_grids_of_several_models_have_equal_rows_and_columns(tmp_path: Path) -> None:
    write_grid(tmp_path)
    tasks = {"jrt_depth": [1.0] * 3, "jrt_depth_twice": [0.0] * 3}
    write_run(tmp_path, "a/c", tasks, documents=dict.fromkeys(tasks, documents()[3:]))  # 2048 only
    first, second = depth_grids(compare_variants(load_results(tmp_path)))
    assert second.lengths == first.lengths
    assert np.isnan(second.first[:, 0]).all()
    np.testing.assert_array_equal(second.gain[:, 1], [-1, -1, -1])
    assert (second.n[:, 0] == 0).all()


def test_each_task_has_its_grid_unless_there_are_many(tmp_path: Path) -> None:
    tasks = {"jrt_depth": ONCE, "jrt_depth_twice": TWICE, "jrt_other": [0.0] * 6, "jrt_other_twice": [0.0] * 6}
    write_run(tmp_path, "m0", tasks, documents=dict.fromkeys(tasks, documents()))
    comparison = compare_variants(load_results(tmp_path))
    found = depth_grids(comparison)
    assert [(grid.model, grid.task, float(grid.second.mean())) for grid in found] == [
        ("m0", "depth", pytest.approx(5 / 6)), ("m0", "other", 0.0),
    ]  # fmt: skip
    assert grid_table(found, comparison).headers()[:3] == ["model", "task", "answer's depth"]
    assert len(grid_plot(found, comparison).axes) == 8  # two rows of three maps, two colour bars
    for number in range(1, 7):
        write_run(tmp_path, f"m{number}", tasks, documents=dict.fromkeys(tasks, documents()))
    many = depth_grids(compare_variants(load_results(tmp_path)))
    assert [(grid.model, grid.task) for grid in many] == [(f"m{number}", "") for number in range(7)]
    assert float(many[0].second.mean()) == pytest.approx(5 / 12)


def test_many_depths_and_lengths_are_put_into_bins(tmp_path: Path) -> None:
    docs = [
        {"question": f"q{i}", "value": "x", "answer_depth": i / 99, "context_length": 100 + 40 * i} for i in range(100)
    ]
    tasks = {"jrt_depth": [1.0] * 100, "jrt_depth_twice": [1.0] * 100}
    write_run(tmp_path, "a/b", tasks, documents=dict.fromkeys(tasks, docs))
    (grid,) = depth_grids(compare_variants(load_results(tmp_path)))
    assert grid.depths == ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    assert grid.lengths == ["to 128", "to 256", "to 512", "to 1024", "to 2048", "to 4096"]
    assert grid.n.sum() == 100
    assert grid.n[:, 0].tolist() == [1, 0, 0, 0, 0]  # 100 tokens; 140 is in the next bin


def test_values_that_are_no_depth_or_length_are_ignored(tmp_path: Path) -> None:
    odd = [("0.5", "512"), (True, True), (-0.1, -5), (1.5, 0), (None, None), (float("nan"), float("inf"))]
    docs = [
        {"question": f"q{i}", "value": "zz", "answer_depth": d, "context_length": n} for i, (d, n) in enumerate(odd)
    ]
    write_run(tmp_path, "a/b", {"jrt_x": [1.0] * len(odd)}, documents={"jrt_x": docs})
    frame = load_results(tmp_path).predictions
    assert frame["answer_depth"].isna().all()
    assert frame["context_length"].isna().all()


def test_the_commands_forms(tmp_path: Path) -> None:
    runs = str(write_grid(tmp_path / "runs"))
    shown = CliRunner().invoke(cli, ["compare", runs, "--table", "grid", "--format", "markdown"]).output
    assert "| model | answer's depth | 512 once | 512 twice | 512 gain | 2048 once | 2048 twice | 2048 gain |" in shown
    assert "| a/b | 0.5 | 0.0 | 100.0 | +100.0 | 0.0 | 100.0 | +100.0 |" in shown
    assert "2 pairs in each cell" in shown
    picture = tmp_path / "grid.png"
    assert CliRunner().invoke(cli, ["compare", runs, "--table", "grid", "-o", str(picture)]).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "r.html"
    assert CliRunner().invoke(cli, ["report", runs, "-o", str(page)]).exit_code == 0
    assert "Score by the answer&#39;s depth and the context length" in page.read_text()


def test_heat_maps_show_the_numbers(tmp_path: Path) -> None:
    comparison = compare_variants(load_results(write_grid(tmp_path)))
    figure = grid_plot(depth_grids(comparison), comparison)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["read once", "read twice", "difference"]
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert texts == [
        ["100", "0", "0", "0", "100", "100"],
        ["100", "0", "100", "100", "100", "100"],
        ["0", "0", "+100", "+100", "0", "0"],
    ]
    assert "<svg" in inline_svg(figure, "grid")


def test_without_depths_there_is_one_clear_line(tmp_path: Path) -> None:
    tasks = {"jrt_x": [1.0, 0.0], "jrt_x_twice": [1.0, 1.0]}
    write_run(tmp_path, "a/b", tasks)
    comparison = compare_variants(load_results(tmp_path))
    assert not has_grid(comparison)
    with pytest.raises(UserError, match="no sample says its answer_depth and context_length"):
        grid_table(depth_grids(comparison), comparison)


def test_a_single_length_is_no_grid(tmp_path: Path) -> None:
    tasks = {"jrt_x": [1.0] * 3, "jrt_x_twice": [1.0] * 3}
    write_run(tmp_path, "a/b", tasks, documents=dict.fromkeys(tasks, documents()[:3]))
    comparison = compare_variants(load_results(tmp_path))
    assert isinstance(comparison.pairs, pd.DataFrame)
    assert not has_grid(comparison)
