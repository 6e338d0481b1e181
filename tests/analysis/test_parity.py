"""Two runs of one model."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from made_runs import write_run

from jrt_eval.analysis import load_results
from jrt_eval.analysis.parity import parity_table
from jrt_eval.cli import cli
from jrt_eval.errors import UserError

SCORES = [1.0, 0.0, 1.0, 0.0] * 5


def test_equal_and_unequal_answers(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "m", {"jrt_fda": SCORES, "jrt_x": SCORES})
    write_run(tmp_path / "b", "m", {"jrt_fda": [0.0, *SCORES[1:]]}, config__batch_size="8", config__random_seed=3)
    samples = next((tmp_path / "b").rglob("samples_*"))
    samples.write_text(
        samples.read_text().replace('["answer 0"]', '["answer zero"]').replace('["answer 1"]', '["reply 1"]')
    )
    table = parity_table(load_results(tmp_path / "a"), load_results(tmp_path / "b"))
    row = table.flat().iloc[0]
    assert (row["task"], row["n"], row["difference"]) == ("jrt_fda", 20, pytest.approx(-5))
    assert row["low"] < -5 < row["high"]
    assert row["identical_answers_percent"] == pytest.approx(90)
    assert row["first_difference"] == 1.5  # words 2 and 1
    assert table.notes == ["batch_size differs: none and 8", "random_seed differs: 0 and 3", "in one run only: jrt_x"]


def test_the_command_and_several_models(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "m", {"jrt_fda": SCORES})
    write_run(tmp_path / "b", "m", {"jrt_fda": SCORES})
    done = CliRunner().invoke(cli, ["parity", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 0
    assert "parity of two runs" in done.output
    write_run(tmp_path / "b", "n", {"jrt_fda": SCORES})
    with pytest.raises(UserError, match="one folder has m, n: choose with --model"):
        parity_table(load_results(tmp_path / "a"), load_results(tmp_path / "b"))
