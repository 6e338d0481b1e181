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


# Files that take longest, by far more than a minute each: with two processes they come first, so that none is left alone at the end.
SLOWEST = ("test_real.py", "test_minis.py", "test_taylor.py", "test_spec.py", "test_adapter_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOWEST)
