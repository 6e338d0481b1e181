"""Prompt tokens and seconds per document: read from results and samples, as columns, and as plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_runs import write_run

from jrt_eval.analysis import compare_variants, load_results
from jrt_eval.analysis.plots import cost_plot, gain_cost_plot
from jrt_eval.analysis.tables import cost_table
from jrt_eval.cli import cli
from jrt_eval.errors import UserError


def write_costs(folder: Path, model: str, seconds: float, tokens: tuple[int, int] = (100, 200), **top: Any) -> None:
    """A model that gains 1 of 4 documents."""
    tasks = {"jrt_x": [0.0, 1.0, 1.0, 1.0], "jrt_x_twice": [1.0] * 4}
    docs = {
        task: [{"question": f"q{i}", "value": "v", "jrt_prompt_tokens": count} for i in range(4)]
        for task, count in zip(tasks, tokens, strict=True)
    }
    path = write_run(folder, model, tasks, documents=docs, **top)
    data = json.loads(path.read_text())
    for factor, (task, count) in enumerate(zip(tasks, tokens, strict=True), 1):
        costs = {"prompt_tokens": 4 * count, "generated_tokens": 12, "seconds": 4 * seconds * factor, "truncated": 3}
        data["configs"][task]["metadata"]["jrt"] = {"costs": costs}
    path.write_text(json.dumps(data))


def test_scores_hold_costs_per_document(tmp_path: Path) -> None:
    write_costs(tmp_path, "a/b", 0.5)
    scores = load_results(tmp_path).scores.set_index("task")
    assert scores.loc["jrt_x", ["prompt_tokens", "generated_tokens", "document_seconds"]].tolist() == [100, 3, 0.5]
    assert scores.loc["jrt_x_twice", ["prompt_tokens", "document_seconds"]].tolist() == [200, 1.0]
    assert scores["n_truncated"].tolist() == [3, 3]


def test_a_samples_cost_is_its_prompts_tokens(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a/b", {"arc_easy": [1.0, 0.0]})
    (samples,) = path.parent.glob("samples_*.jsonl")
    lines = [json.loads(line) | {"jrt_cost": {"prompt_tokens": 7}} for line in samples.read_text().splitlines()]
    samples.write_text("\n".join(map(json.dumps, lines)) + "\n")
    results = load_results(tmp_path)
    assert results.predictions["prompt_tokens"].tolist() == [7, 7]
    assert [unit.metrics for unit in results.units] == [["contains"]]


def test_the_table_divides_the_gain_by_what_it_costs(tmp_path: Path) -> None:
    write_costs(tmp_path, "a/b", 0.5)
    table = cost_table(compare_variants(load_results(tmp_path)))
    cells = dict(zip(table.headers(), table.cells()[0], strict=True))
    assert cells["gain"] == "+25.0"
    assert [cells[f"prompt tokens {arm}"] for arm in ("once", "twice")] == ["100", "200"]
    assert cells["gain per 1,000 tokens"] == "+250.0"  # 25 points for 100 tokens
    assert [cells[f"seconds {arm}"] for arm in ("once", "twice")] == ["0.5", "1"]
    assert cells["gain per second"] == "+50.0"
    assert cells["documents/s twice"] == "1"


def test_costs_that_nobody_recorded(tmp_path: Path) -> None:
    tasks = {"jrt_x": [1.0, 0.0], "jrt_x_twice": [1.0, 1.0]}
    write_run(tmp_path, "a/b", tasks)
    comparison = compare_variants(load_results(tmp_path))
    with pytest.raises(UserError, match="no cost is known"):
        cost_table(comparison)
    assert gain_cost_plot(comparison, "tokens") is None
    assert cost_plot(load_results(tmp_path), "prompt_tokens") is None


def test_plots_against_costs(tmp_path: Path) -> None:
    write_costs(tmp_path, "a/small", 0.5, config__model_state_bytes=1000)
    write_costs(tmp_path, "a/large", 2.0, config__model_state_bytes=50_000)
    results = load_results(tmp_path)
    comparison = compare_variants(results)
    seconds = gain_cost_plot(comparison, "seconds")
    assert seconds is not None
    assert seconds.axes[0].get_xlabel() == "more seconds per document"
    assert gain_cost_plot(comparison, "tokens") is None  # equal for both: no plot says more than the gain itself
    state = cost_plot(results, "state_bytes")
    assert state is not None
    assert state.axes[0].get_xscale() == "log"
    picture = tmp_path / "cost.svg"
    done = CliRunner().invoke(cli, ["compare", str(tmp_path), "--table", "cost", "-o", str(picture)])
    assert done.exit_code == 0, done.exception
    assert "<svg" in picture.read_text()


def test_a_score_against_costs_is_over_the_data_sets_that_all_models_have(tmp_path: Path) -> None:
    write_costs(tmp_path, "a/small", 0.5)
    write_costs(tmp_path, "a/large", 2.0)
    path = write_run(tmp_path, "a/large", {"jrt_only": [0.0] * 4}, name="more")
    data = json.loads(path.read_text())
    data["configs"]["jrt_only"]["metadata"]["jrt"] = {"costs": {"prompt_tokens": 4, "seconds": 4.0}}
    path.write_text(json.dumps(data))
    figure = cost_plot(load_results(tmp_path), "document_seconds")
    assert figure is not None
    heights = sorted(float(y) for line in figure.axes[0].lines for y in line.get_ydata())  # type: ignore[arg-type]
    assert heights == [75.0, 75.0, 100.0, 100.0]
