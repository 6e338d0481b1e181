"""Building without a compiler, what `make` says on a machine that lacks something, and where an installation puts its files."""

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


# Takes the place of Python in the Makefile: makes an environment of copies of itself, and prints the calls of pip.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit ${UNSUPPORTED:-0} ;;
  *ensurepip*) exit ${NO_VENV:-0} ;;
  --version) echo "Python 3.9.18" ;;
  "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/jrt-eval ;;
  *"pip install"*) echo "PURE=$JRT_EVAL_PURE $*" ;;
  demo*) echo "the demo runs" ;;
esac
"""
TOOLS = ("make", "sh", "cp", "mkdir", "touch", "find", "rm", "cat", "env")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout and a folder `bin` with all programs of a machine: no compiler, and a Python that pretends."""
    if shutil.which("make") is None:
        pytest.skip("no make on the path")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    python = tmp_path / "bin" / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path


def make(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("make") or "make", "demo"],
        cwd=machine,
        capture_output=True,
        text=True,
        env={"PATH": str(machine / "bin"), **environment},
    )


def test_make_without_a_compiler_goes_on_without_kernels(machine: Path) -> None:
    result = make(machine)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "no C++ compiler" in line]
    assert "without kernels" in line
    assert "PURE=1 -m pip install --quiet --constraint constraints.txt --editable" in result.stdout
    assert result.stdout.splitlines()[-1] == "the demo runs"


def test_make_with_a_compiler_builds_the_kernels(machine: Path) -> None:
    compiler = machine / "bin" / "c++"
    compiler.write_text("#!/bin/sh\ncat >/dev/null\n")
    compiler.chmod(0o755)
    result = make(machine)
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler" not in result.stdout
    assert "PURE= -m pip install --quiet --constraint constraints.txt --editable" in result.stdout


def test_make_with_a_compiler_that_does_not_work(machine: Path) -> None:
    compiler = machine / "bin" / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    assert "no C++ compiler" in make(machine).stdout


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"UNSUPPORTED": "1"}, "python3 is Python 3.9.18. Run: make PYTHON=python3.12 demo"),
        ({"NO_VENV": "1"}, "python3 has no venv module. Run: apt-get install python3-venv"),
    ],
    ids=["unsupported Python", "no venv"],
)
def test_what_make_lacks_is_one_line(machine: Path, lacks: dict[str, str], said: str) -> None:
    result = make(machine, **lacks)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert said in line
    assert not (machine / ".venv").exists()


def test_make_without_any_python(machine: Path) -> None:
    (machine / "bin" / "python3").unlink()
    (line,) = [line for line in make(machine).stderr.splitlines() if not line.startswith("make")]
    assert "python3 is missing" in line


def test_installed_files_stand_where_the_design_says() -> None:
    files = {str(file) for file in metadata.files("jrt-eval") or []}
    assert {"jrt_eval_autoload.py", "jrt_eval_autoload.pth"} <= files
    ours = ("jrt_eval", "jrt_eval_autoload.py", "jrt_eval_autoload.pth", "..", "__pycache__")
    others = {name.split("/")[0] for name in files} - set(ours)
    assert not [name for name in others if not name.endswith(".dist-info") and "editable" not in name]
