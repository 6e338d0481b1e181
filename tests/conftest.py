"""Fixtures that several parts of the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden outputs of the original and real documents, beside the checkout; a test that needs them skips without."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared folder at {SHARED}")
    return SHARED
