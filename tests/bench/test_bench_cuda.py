"""`jrt-eval bench kernels --device cuda`, tried out on the processor: what it counts, chooses, leaves out, prints and writes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from jrt_eval.bench import cuda, cuda_forms, timing
from jrt_eval.bench.cuda import GpuTiming, HeadShape, PrefillSize
from jrt_eval.bench.cuda_forms import CAUSAL, PREFIX, SOFTMAX, Form, forms
from jrt_eval.cli import bench as cli
from jrt_eval.kernels import num_features, taylor_linear_attention

SHAPE = HeadShape(2, 16, 64, torch.device("cpu"))


def test_points_are_those_of_table_5_and_the_shared_one_comes_once() -> None:
    found = cuda.points(cuda.LENGTHS, cuda.BATCHES, cuda.BATCH)
    assert [(p.batch, p.length) for p in found if p.sweep == "length"] == [(16, 2048 << n) for n in range(7)]
    assert [(p.batch, p.length) for p in found if p.sweep == "batch"] == [(b, 16384) for b in (2, 4, 8, 32, 64)]
    assert [p.batch for p in cuda.points([2048], [16, 2, 2], 16)] == [16, 2, 16]


def test_counts() -> None:
    shape, point = HeadShape(16, 16, 64, torch.device("cpu")), PrefillSize("length", 16, 32768)
    q, v = 16 * 32768 * 16 * 16, 16 * 32768 * 16 * 64  # numbers of 2 bytes
    assert cuda.least_bytes(CAUSAL, shape, point) == 2 * (2 * q + 2 * v)
    assert cuda.least_bytes(PREFIX, shape, point) == 2 * (2 * q + 2 * v) + (q + v)  # half as many encoder tokens
    assert cuda.least_bytes(SOFTMAX, shape, point) == 2 * 4 * v
    assert cuda.flops(CAUSAL, shape, point) == 16 * 16 * 32768 * 49408  # of spec/kernels.md
    assert cuda.flops(PREFIX, shape, point) - cuda.flops(CAUSAL, shape, point) == 16 * 16 * 16384 * 2 * 153 * 64
    assert cuda.flops(SOFTMAX, shape, point) == 16 * 16 * 2 * 32768**2 * 64
    state = 16 * 16 * num_features(16) * 65 * 4
    assert cuda.state_bytes(shape, 16) == state
    least = cuda.least_bytes(CAUSAL, shape, point)
    assert cuda.moved_bytes(CAUSAL, shape, point, 1) == least + state
    assert cuda.moved_bytes(CAUSAL, shape, point, 2) == least + state + (q + v) + 4 * state  # half of k and v again
    assert cuda.moved_bytes(PREFIX, shape, point, 1) == cuda.least_bytes(PREFIX, shape, point) + state


def test_shares_are_over_the_fewest_bytes_and_flops() -> None:
    row = GpuTiming(
        "length", CAUSAL, "x", 1, 64, seconds=2.0, flops=8, least_bytes=6, moved_bytes=9, copy_bytes_per_s=4.0
    )
    assert (row.flops_per_s, row.of_copy, row.moved_over_least) == (4.0, 0.75, 1.5)
    empty = GpuTiming("length", CAUSAL, "x", 1, 64, "out of memory")
    assert (empty.flops_per_s, empty.of_copy, empty.moved_over_least) == (None, None, None)


class Packages:
    """fla and flash-attn as the forms call them, computed by PyTorch."""

    def __init__(self, *names: str) -> None:
        self.names, self.seen = names, list[str]()

    def __call__(self, name: str) -> Any:
        if name.partition(".")[0] not in self.names:
            raise ImportError(f"No module named {name!r}")

        def based(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            assert q.shape[:3] == v.shape[:3]
            return taylor_linear_attention(q, k, v, backend="torch")[0]

        def linear(q: Tensor, k: Tensor, v: Tensor, *, scale: float, normalize: bool) -> tuple[Tensor, None]:
            assert q.shape[-1] == num_features(16) and scale == 1.0 and normalize
            a = torch.einsum("bihn,bjhn->bhij", q.float(), k.float()).tril()
            return torch.einsum("bhij,bjhf->bihf", a / a.sum(-1, keepdim=True), v.float()), None

        def flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
            assert causal and q.shape == k.shape == v.shape
            return v

        functions: dict[str, Any] = {
            "parallel_based": based,
            "fused_chunk_based": based,
            "chunk_linear_attn": linear,
            "fused_chunk_linear_attn": linear,
            "flash_attn_func": flash,
        }
        return SimpleNamespace(**functions)


def test_missing_packages_leave_their_forms_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_forms, "import_module", Packages("flash_attn"))
    missing = {form.name: form.missing for form in forms() if form.missing}
    assert set(missing) == {
        "fla parallel_based",
        "fla fused_chunk_based",
        "fla chunk_linear_attn",
        "fla fused_chunk_linear_attn",
    }
    assert all(reason.startswith("fla is not installed") for reason in missing.values())

    def broken(name: str) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(cuda_forms, "import_module", broken)
    reasons = [form.missing for form in forms() if form.missing]
    assert len(reasons) == 5
    assert "flash_attn does not import: RuntimeError: no driver" in reasons


def test_every_form_of_our_operators_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_forms, "import_module", Packages("fla", "flash_attn"))
    found = cuda.errors(SHAPE, forms(), batch=1, length=200)
    assert set(found) == {form.name for form in forms() if form.operator != SOFTMAX}
    for name, error in found.items():
        assert isinstance(error, float) and error < 0.03, (name, error)  # bfloat16, some with sums in it
    wrong = Form("wrong", CAUSAL, lambda x: lambda: 2 * taylor_linear_attention(x.q, x.k, x.v)[0])
    fails = Form("fails", CAUSAL, lambda x: lambda: x.q @ x.v)
    found = cuda.errors(SHAPE, [wrong, fails], batch=1, length=200)
    assert found["wrong"] == pytest.approx(1.0, abs=0.05)
    assert str(found["fails"]).startswith("failed: RuntimeError: ")


def test_what_would_take_too_long_is_left_out() -> None:
    linear, square = (Form("x", CAUSAL, lambda x: lambda: x.v, quadratic) for quadratic in (False, True))
    before = {"x": GpuTiming("length", CAUSAL, "x", 16, 1024, seconds=0.5)}
    assert cuda._expected(linear, PrefillSize("length", 16, 4096), before) == 2.0
    assert cuda._expected(square, PrefillSize("length", 16, 4096), before) == 8.0
    assert cuda._expected(square, PrefillSize("batch", 4, 4096), before) == 2.0
    assert cuda._expected(linear, PrefillSize("length", 16, 4096), {}) == 0.0


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "timings", lambda runs, device, **_: timing.timings(runs, device, rounds=3, seconds=1e-4))


def test_a_form_that_fails_or_is_too_slow_keeps_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    calls: list[str] = []

    def full(x: cuda_forms.Inputs) -> Any:
        raise torch.cuda.OutOfMemoryError("2 GiB")

    slow = Form("slow", CAUSAL, lambda x: lambda: calls.append("slow") or x.v, True)  # type: ignore[func-returns-value]
    candidates = [
        Form(cuda_forms.OURS, CAUSAL, cuda_forms._ours),
        Form("full", CAUSAL, full),
        Form("absent", CAUSAL, full, missing="not installed"),
        slow,
    ]
    before = {"slow": GpuTiming("length", CAUSAL, "slow", 1, 10, seconds=1.0)}
    point = PrefillSize("length", 1, 70)
    rows = {r.name: r for r in cuda.prefill(SHAPE, point, candidates, before, cuda.Ceilings(SHAPE.device))}
    assert rows["full"].note == "out of memory"
    assert rows["absent"].note == "not installed"
    assert rows["slow"].note == "would take about 49 s"
    assert not calls
    mine = rows[cuda_forms.OURS]
    assert mine.seconds and mine.copy_bytes_per_s and mine.matmul_flops_per_s and mine.note == ""
    assert mine.of_copy == pytest.approx(cuda.least_bytes(CAUSAL, SHAPE, point) / mine.seconds / mine.copy_bytes_per_s)
    table = cuda.lines(list(rows.values()))
    assert table[0][0] == cuda_forms.OURS
    assert table[1:] == [["full", "out of memory"], ["absent", "not installed"], ["slow", "would take about 49 s"]]


def test_the_summary_takes_the_fastest_of_each_kind() -> None:
    def row(name: str, seconds: float | None) -> GpuTiming:
        return GpuTiming("length", CAUSAL, name, 16, 2048, "", seconds)

    rows = [
        row(cuda_forms.OURS, 1e-3),
        replace(row(cuda_forms.OURS_PREFIX, 2e-3), least_bytes=100, copy_bytes_per_s=1e5),
        row("FlashAttention-2 (PyTorch)", 8e-3),
        row("FlashAttention-2 (flash-attn)", 6e-3),
        row("fla parallel_based", 20e-3),
        row("fla fused_chunk_based", None),
    ]
    (line,) = cuda.summary(rows)
    assert line == ["16 x 2,048", "1.00 ms", "", "2.00 ms", "50.0%", "3.0x", "", "10.0x", ""]
    assert len(line) == len(cuda.SUMMARY)


def test_the_command_prints_and_writes_both_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    quick(monkeypatch)
    monkeypatch.setattr(cli, "_device", lambda name, threads: torch.device("cpu"))
    monkeypatch.setattr(cuda_forms, "import_module", Packages("fla"))
    monkeypatch.setattr(cuda, "LENGTH", 80)
    monkeypatch.setattr(
        cuda,
        "points",
        lambda *a: [PrefillSize("length", 2, 40), PrefillSize("length", 2, 80), PrefillSize("batch", 3, 80)],
    )
    arguments = ["kernels", "--device", "cuda", "--heads", "2", "--batches", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for text in (
        "prefill, 2 x 40 tokens",
        "prefill, 3 x 80 tokens",
        "decode step, batch 3",
        "flash_attn is not installed",
        "error of fla chunk_linear_attn",
        "fla / JRT-RNN",
        "moved/least",
        "copy (bytes/s)",
    ):
        assert text in result.output
    found = json.loads((tmp_path / "kernels_cuda.json").read_text())
    assert found["machine"]["copy (bytes/s)"] > 0
    with open(tmp_path / "kernels_cuda.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in found["rows"]]
    assert len([row for row in rows if row["sweep"] == "length"]) == 2 * len(forms())
    assert [row["name"] for row in rows if row["sweep"] == "decode" and row["seconds"]] == [
        "jrt-eval",
        "PyTorch, in place, symmetric",
        "PyTorch, as released",
    ]
    assert (tmp_path / "kernels_cuda.png").stat().st_size > 10000


def test_no_gpu_is_said_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    result = CliRunner().invoke(cli.bench, ["kernels", "--device", "cuda"])
    assert "PyTorch sees no GPU here" in str(result.exception)
