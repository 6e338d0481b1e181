"""Every test of an operator runs on each backend that is live here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from jrt_eval.kernels.registry import BACKENDS

sys.path.insert(0, str(Path(__file__).parent))


def live() -> list[tuple[str, str]]:
    """(backend, device) pairs that can run on this machine."""
    return [
        (name, entry.device or "cpu")
        for name, entry in BACKENDS.items()
        if entry.missing is None and (entry.device != "cuda" or torch.cuda.is_available())
    ]


@pytest.fixture(params=live(), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def where(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and the device its tensors live on."""
    pair: tuple[str, str] = request.param
    return pair
