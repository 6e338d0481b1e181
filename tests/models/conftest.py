"""Tiny checkpoints on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.models import save_pretrained

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny checkpoint of a family and give its folder."""
    from tiny_models import tiny

    def make(family: str, *, safetensors: bool = False, **changes: Any) -> Path:
        folder = tmp_path / family
        save_pretrained(tiny(family, **changes), folder, safetensors=safetensors)
        return folder

    return make
