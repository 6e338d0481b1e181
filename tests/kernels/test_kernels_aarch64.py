"""The kernels compile for aarch64: no x86 header, type or flag has crept into what every machine builds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.parametrize("source", ["kernels.cpp", "cpu.cpp", "absent.cpp"])
def test_compiles_for_aarch64(source: str, tmp_path: Path) -> None:
    compiler = shutil.which(COMPILER)
    if compiler is None:
        pytest.skip(f"no {COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)")
    made = tmp_path / "object.o"
    flags = ["-std=c++17", "-O0", "-fPIC", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
    found = subprocess.run(
        [compiler, *flags, "-c", str(CSRC / source), "-o", str(made)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert made.read_bytes()[18:20] == b"\xb7\x00"  # ELF machine 183: AArch64
