"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Every process that a test starts imports startup/sitecustomize.py, and so does this one.
STARTUP = str(Path(__file__).with_name("startup"))
if "JRT_EVAL_TEST_TASKS" not in os.environ:  # else a process of pytest-xdist, which uses the same file as the others
    PARSED = tempfile.TemporaryDirectory(prefix="jrt-eval-tests-")
    os.environ["JRT_EVAL_TEST_TASKS"] = str(Path(PARSED.name) / "parsed")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH", "")]))
    sys.path.insert(0, STARTUP)
    import sitecustomize  # noqa: F401

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
