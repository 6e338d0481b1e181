"""The backward passes for GPUs, in PyTorch and as Triton kernels. Without a GPU, Triton's interpreter runs the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_oracle as oracle
import pytest
import torch
from backward_cases import CASES, Case, errors

from jrt_eval.kernels import causal_dot_product, feature_map, num_features
from jrt_eval.kernels.causal_dot_product import backward as causal
from jrt_eval.kernels.taylor_linear_attention import backward
from jrt_eval.kernels.taylor_linear_attention.features import feature_map_backward


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 16])
def test_feature_map(d: int) -> None:
    x = torch.randn(5, d, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, num_features(d), dtype=torch.float64)
    (want,) = torch.autograd.grad(feature_map(x), x, g)
    torch.testing.assert_close(feature_map_backward(x.detach(), g), want)


def bound(case: Case) -> float:
    return 2e-5 if case.dtype in (torch.float32, torch.float64) else 2e-2


@pytest.mark.parametrize("name", CASES)
def test_in_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "SEGMENT", 64)  # several of them
    found = errors(backward, CASES[name])
    assert max(found, default=0) < bound(CASES[name]), found


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("length", [0, 1, 64, 200])
def test_causal_product_in_pytorch(length: int, stateful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "SEGMENT", 128)
    g = torch.Generator().manual_seed(0)
    shapes = (2, length, 2, 5), (2, length, 2, 5), (2, length, 2, 7), (2, 2, 5, 7)
    q, k, v, state = (torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes)
    y, final = causal_dot_product(q, k, v, state if stateful else None)
    gy, gs = (torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (y, final))
    inputs = [q, k, v, state] if stateful else [q, k, v]
    want = torch.autograd.grad((y * gy).sum() + (final * gs).sum(), inputs, materialize_grads=True)
    given = state.detach() if stateful else None
    got = causal.causal_dot_product_backward(q.detach(), k.detach(), v.detach(), given, gy, gs)
    for mine, theirs in zip(got, want, strict=False):
        assert oracle.error(mine, theirs) < 1e-12


def test_triton_kernels_on_the_processor() -> None:
    pytest.importorskip("triton")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(here / "triton_on_a_cpu.py")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES)
    for line, (name, case) in zip(lines, CASES.items(), strict=True):
        found = [float(x) for x in line.removeprefix(name).split()]
        assert len(found) == (7 if case.state else 5)
        assert max(found) < bound(case), line


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("name", [name for name in CASES if name != "wide"])  # wider than `cuda` gives them in float32
def test_triton_kernels_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backward_triton = pytest.importorskip("jrt_eval.kernels.taylor_linear_attention.triton")
    monkeypatch.setattr(backward_triton, "SHORTEST", CASES[name].shortest)
    found = errors(backward_triton, CASES[name], "cuda")
    assert max(found) < bound(CASES[name]), found
