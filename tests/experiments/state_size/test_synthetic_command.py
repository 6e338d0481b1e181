"""`jrt-eval synthetic`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jrt_eval.cli import cli
from jrt_eval.errors import UserError


def test_command_line_and_bad_input(tmp_path: Path) -> None:
    base = ["synthetic", "-o", str(tmp_path), "--device", "cpu"]
    small = ["--steps", "2", "--batch", "2", "--examples", "4", "--limit", "32", "--rates", "1e-3", "--seeds", "0"]
    shape = ["--widths", "8", "--features", "2", "--only", "causal"]
    result = CliRunner().invoke(cli, [*base, *small, *shape], catch_exceptions=False)
    assert "1 points" in result.output
    assert (tmp_path / "scores.csv").is_file()
    marked = ["--preset", "marked", "--pairs", "2x4", *small, *shape]
    base[2] = str(tmp_path / "marked")
    CliRunner().invoke(cli, [*base, *marked], catch_exceptions=False)
    ran = json.loads((tmp_path / "marked" / "points" / "width8-features2-causal.json").read_text())["settings"]
    assert (ran["marked"], ran["pairs"], ran["vocabulary"]) == (True, [[2, 4]], 100)
    with pytest.raises(UserError, match=r"other settings \(marked\)"):
        CliRunner().invoke(cli, [*base, *marked, "--unmarked"], catch_exceptions=False)
    base[2] = str(tmp_path)
    for wrong, says in [
        (["--widths", "7", "--features", "2"], "7 does not split into 2 heads"),
        (["--widths", "8,x"], "is not a list such as 4,8,16"),
        (["--pairs", "4-16"], "is not a list such as 4x16,4x64"),
        (["--pairs", "0x16"], "at least one element"),
        (["--pairs", "4x4"], "must differ in size"),
        (["--sharp", "nan"], "sharp: must be above 0"),
        (["--hold", "1"], "hold: a share of the steps"),
        (["--beta2", "1"], "beta2: must be between"),
        (["--limit", "8"], "no pair of sets"),
        (["--vocabulary", "40"], "for a set of 128; lower limit"),
        (["--curriculum", "2"], "a share of the steps"),
        (["--device", "abacus", *small, *shape], "--device abacus"),
    ]:
        with pytest.raises(UserError) as raised:
            CliRunner().invoke(cli, [*base, *wrong], catch_exceptions=False)
        assert says in str(raised.value)
