"""Every test of an operator runs on each backend that works here, and on each instruction set of the CPU backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jrt_eval.kernels import compiled, status
from jrt_eval.kernels.dispatch import BACKENDS

sys.path.insert(0, str(Path(__file__).parent))


def live() -> list[Any]:
    """(backend, device, instruction set) triples that can run on this machine; "cuda" shows as skipped where it cannot."""
    found: list[Any] = []
    for name, entry in BACKENDS.items():
        if name in ("fla", "triton"):  # bfloat16 only (test_fla), or without these operators
            continue
        if entry.device == "cuda" and (entry.missing is not None or not torch.cuda.is_available()):
            why = "PyTorch sees no GPU" if entry.missing is None else entry.missing.partition(";")[0]
            found.append(
                pytest.param((name, "cuda", ""), marks=pytest.mark.skip(reason=f"no CUDA kernels here: {why}"))
            )
            continue
        if entry.missing is not None:
            continue
        if name == "cpu":
            module = compiled.module()
            isas = [isa for isa in ("avx512", "avx2", "portable") if module.select_isa(isa)]
            module.select_isa(status().isa or "")
            found += [(name, "cpu", isa) for isa in isas]
        else:
            found.append((name, entry.device or "cpu", ""))
    return found


@pytest.fixture(params=live(), ids=lambda triple: "-".join(part for part in triple if part))
def where(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A backend and the device of its tensors."""
    name, device, isa = request.param
    if isa:
        assert compiled.module().select_isa(isa) == isa
    yield name, device
    if isa:
        compiled.module().select_isa(status().isa or "")


@pytest.fixture
def cpu() -> str:
    """The compiled CPU backend."""
    if BACKENDS["cpu"].missing is not None:
        pytest.skip(f"no compiled kernels: {BACKENDS['cpu'].missing}")
    return "cpu"
