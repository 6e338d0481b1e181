"""`jrt-eval bench`: what it counts, what it leaves out, and the files it writes. No time is asserted."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from jrt_eval.bench import alternatives, commands, configs, recurrences, timing
from jrt_eval.bench import kernels as measured
from jrt_eval.cli.bench import OPERATORS, bench
from jrt_eval.errors import UserError
from jrt_eval.kernels import taylor_linear_attention


def test_minimal_flops_are_those_of_153_features_and_chunks_of_64() -> None:
    assert measured.minimal_flops(1, 1, 1, 16, 64) == 4 * 153 * 64 + 2 * 64 * 80
    assert measured.minimal_flops(2, 3, 100, 16, 64) == 600 * measured.minimal_flops(1, 1, 1, 16, 64)


def test_every_alternative_computes_the_same_operator() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 130, d, generator=g) for d in (16, 16, 24))
    want, _ = taylor_linear_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    for name, (run, _) in {**alternatives.table(), **alternatives.differentiable()}.items():
        if "softmax" not in name:
            torch.testing.assert_close(run(q, k, v).transpose(1, 2), want, rtol=1e-3, atol=1e-4, msg=name)


def test_what_would_take_too_long_or_too_much_memory_is_left_out() -> None:
    shape = measured.BatchShape(1, 16, 16, 64, torch.device("cpu"))
    assert not measured._too_much("scores", True, shape, 512, {})
    assert measured._too_much("scores", True, shape, 65536, {})
    assert not measured._too_much("scores", True, shape, 2048, {"scores": (1024, 0.9)})
    assert measured._too_much("scores", True, shape, 2048, {"scores": (1024, 1.1)})
    assert not measured._too_much("linear", False, shape, 2048, {"linear": (1024, 1.9)})
    assert measured._too_much("linear", False, shape, 2048, {"scores": (1024, 0.1)})


@pytest.mark.parametrize("name", ["jrt-360m", "jrt-1b", "based-360m", "based-1b"])
def test_released_configs_have_the_window_of_the_checkpoints(name: str) -> None:
    config = configs.released_config(name)
    assert config["alt_mixer_2"]["window_size"] == 256
    assert config["n_embd"] == (1792 if name.endswith("1b") else 1024)
    assert [layer + 1 for layer in config["alt_mixer_layers"]] == config["alt_mixer_2_layers"]


def test_fewer_layers_and_unknown_names() -> None:
    config = configs.released_config("jrt-360m", 7)
    assert (config["n_layer"], config["alt_mixer_layers"], config["alt_mixer_2_layers"]) == (7, [1, 6], [2])
    assert configs.released_config("jrt-360m", 100) == configs.released_config("jrt-360m")
    with pytest.raises(UserError, match=r"no model config 'jrt-36m' \(did you mean 'jrt-360m'"):
        configs.released_config("jrt-36m")


def test_medians_take_turns_and_leave_out_the_first_round() -> None:
    seen: list[str] = []
    ticks = iter(range(1000))
    found = timing.medians({name: (lambda name=name: seen.append(name)) for name in "ab"}, 3, lambda: next(ticks))
    assert seen == list("ab" * 4)
    assert found == {"a": 1, "b": 1}


def test_every_round_times_every_candidate() -> None:
    seen: list[str] = []
    found = timing.timings(
        {name: (lambda name=name: seen.append(name)) for name in "ab"}, torch.device("cpu"), rounds=3, seconds=1e-5
    )
    assert seen.count("a") >= 5
    assert seen.count("b") >= 5
    assert all(0 < x.fastest <= x.median <= x.slowest for x in found.values())


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    quick = timing.timings
    monkeypatch.setattr(measured, "timings", lambda runs, device, **_: quick(runs, device, rounds=3, seconds=1e-3))
    monkeypatch.setattr(measured, "Matmul", lambda device: timing.Matmul(device, size=64))
    arguments = ["kernels", "--lengths", "16,70", "--batches", "2", "--heads", "2", "--output", str(tmp_path)]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for text in ("prefill, 70 tokens", "gradients, 16 tokens", "decode step, batch 2", "of matmul", "SDPA"):
        assert text in result.output
    with open(tmp_path / "kernels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in json.loads((tmp_path / "kernels.json").read_text())["rows"]
    ]
    ours = [row for row in rows if row["name"] == measured.OURS]
    assert [(row["operator"], row["length"]) for row in ours] == [
        ("prefill", "16"),
        ("prefill", "70"),
        ("gradients", "16"),
        ("gradients", "70"),
        ("decode", "1"),
    ]
    share = measured.minimal_flops(1, 2, 70, 16, 64) / float(ours[1]["seconds"]) / float(ours[1]["matmul_flops"])
    assert float(ours[1]["matmul_fraction"]) == pytest.approx(share)
    assert (tmp_path / "kernels.png").stat().st_size > 10000


def test_the_model_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"n_embd": 64, "n_inner": 64, "vocab_size": 100}
    small_mamba = {"d_model": 64, "vocab_size": 100}
    released = configs.released_config

    def shrunk(name: str, layers: int | None = None) -> dict[str, Any]:
        return released(name, layers) | (small_mamba if name.startswith("mamba") else small)

    monkeypatch.setattr(commands, "released_config", shrunk)
    names = ["jrt-360m", "mamba-360m", "mamba2-360m"]
    chosen = [part for name in names for part in ("--model", name)]
    arguments = ["--length", "40", "--steps", "1", "--rounds", "1", "--layers", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(bench, ["model", *chosen, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "model.json").read_text())["models"]
    assert [entry["model"] for entry in found] == names
    for entry in found:
        assert [run["backend"] for run in entry["runs"]] == ["torch", "auto"]
        for run in entry["runs"]:
            assert 0 < run["operator_seconds"] <= run["mixer_seconds"] <= run["prefill_seconds"]
    assert (tmp_path / "model.png").stat().st_size > 5000


def test_recurrent_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(recurrences.OPERATORS) == list(OPERATORS[1:])
    monkeypatch.setattr(recurrences, "timings", partial(timing.timings, rounds=1, fewest=1, seconds=0.0))
    for operator in OPERATORS[1:]:
        arguments = ["--operator", operator, "--lengths", "3,40", "--batches", "2", "--output", str(tmp_path)]
        result = CliRunner().invoke(bench, ["kernels", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        rows = list(csv.DictReader((tmp_path / f"{operator}.csv").open()))
        found = [(row["operator"], row["length"]) for row in rows if row["name"] == "jrt-eval"]
        assert found == [("prefill", "3"), ("prefill", "40"), ("gradients", "3"), ("gradients", "40"), ("decode", "1")]
        assert (tmp_path / f"{operator}.png").stat().st_size > 10000


def test_an_option_of_another_operator() -> None:
    result = CliRunner().invoke(bench, ["kernels", "--operator", "ssd", "--heads", "3"])
    assert isinstance(result.exception, UserError)
    assert "--heads is for --operator taylor_linear_attention" in str(result.exception)


@pytest.mark.parametrize("lengths", ["0", "a", ""])
def test_lengths_that_are_none(lengths: str) -> None:
    result = CliRunner().invoke(bench, ["kernels", "--lengths", lengths])
    assert result.exit_code == 2
    assert "positive whole numbers" in result.output
