"""The sweeps that come along, from beginning to end with a stand-in for lm_eval: their final tables."""

from __future__ import annotations

from typing import Any

import pytest

from jrt_eval.sweep import spec
from jrt_eval.sweep.local import LocalEngine
from jrt_eval.sweep.run import run_sweep


@pytest.mark.parametrize(
    ("name", "results", "rows"),
    [
        # the stand-in scores 50 percent everywhere; the other numbers are the paper's
        (
            "table1_hazy",
            36,
            [
                "| based-1b-50b | JRT, Table 1 | 1.3B 50B | 60.2 | 68.3 | 37.1 | 54.0 | 29.4 | 35.2 | 38.9 | 56.3 | 54.5 | 57.6 |",
                "| based-1b-50b | measured |",
                "| attn-1b-50bn | JRT, Table 1 | 1.3B 50B | 83.7 | 89.2 |",
            ],
        ),
        (
            "table2",
            96,
            [
                "| JRT-1B-50B | once | measured |",
                "| JRT-1B-50B | once | JRT, Table 2 | 86.7 | 67.7 | – | 49.4 | 45.7 | – | 38.3 |",
            ],
        ),
        (
            "table4",
            18,
            [
                "| JRT-1B-50B | iterate | paper | 80.2 | 43.3 | 34.2 |",
                "| JRT-1B-50B | left_pad | measured | 50.0 | 50.0 | 50.0 |",
            ],
        ),
        (
            "superglue",
            32,
            ["| JRT-1B-50B |  | boolq | contains 0.500 |", "| attn-1b-50bn | record | record | contains 0.500 |"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_final_table(toys: Any, capsys: pytest.CaptureFixture[str], name: str, results: int, rows: list[str]) -> None:
    sweep = spec.load(name, ["resources={gpus: 0, cpus: 0.1}"])
    assert run_sweep(sweep, toys.out, engine=LocalEngine(cpus=0.5), command=toys.stand_in) == 0
    assert f"{results} of {results} results" in capsys.readouterr().out
    table = (toys.out / "table.md").read_text().replace("*", "")
    for row in rows:
        assert row in table, table
