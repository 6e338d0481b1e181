"""What a user without a compiler sees, and what an installation puts where."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cmake() -> str:
    found = shutil.which("cmake")
    if found is None:
        pytest.skip("no cmake on the path")
    return found


def configure(cmake: str, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(folder), "-DSKBUILD_PLATLIB_DIR=/unused", *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_without_a_compiler_the_build_says_what_to_do(cmake: str, tmp_path: Path) -> None:
    result = configure(cmake, tmp_path, CXX="/no/such/compiler")
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "no C++ compiler was found" in message
    assert "JRT_EVAL_PURE=1 pip install jrt-eval" in message


def test_pure_build_needs_no_compiler(cmake: str, tmp_path: Path) -> None:
    result = configure(cmake, tmp_path, "-DJRT_EVAL_PURE=ON", CXX="/no/such/compiler")
    assert result.returncode == 0, result.stderr
    assert "no kernels are built" in result.stdout


def test_installed_files_stand_where_the_design_says() -> None:
    files = {str(file) for file in metadata.files("jrt-eval") or []}
    assert {"jrt_eval_autoload.py", "jrt_eval_autoload.pth"} <= files
    ours = ("jrt_eval", "jrt_eval_autoload.py", "jrt_eval_autoload.pth", "..", "__pycache__")
    others = {name.split("/")[0] for name in files} - set(ours)
    assert not [name for name in others if not name.endswith(".dist-info") and "editable" not in name]
