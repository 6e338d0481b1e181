"""Our child processes import nothing from the folder in which they are started."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from jrt_eval import processes

HOSTILE = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch(); raise SystemExit(f'{__file__} ran')\n"
NAMES = ("ctypes", "json", "orjson", "runpy", "multiprocessing", "lm_eval", "yaml", "click", "tempfile")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it has modules of the names that Python and we import, and each says that it ran."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.ran")]


def test_these_modules_would_run_without_us(hostile: Path) -> None:
    assert subprocess.run([sys.executable, "-m", "json.tool", "--help"], capture_output=True).returncode != 0
    assert ran(hostile) == ["json.ran"]


def test_a_module_is_the_installed_one(hostile: Path) -> None:
    command = processes.python_module("json.tool", "--help")
    done = subprocess.run(command, capture_output=True, text=True, env=processes.child_environment())
    assert (done.returncode, ran(hostile)) == (0, []), done.stderr
    assert "json.tool" in done.stdout


def test_arguments_and_the_exit_status_pass_through(hostile: Path) -> None:
    (hostile / "data.json").write_text("[1,")
    assert subprocess.run(processes.python_module("json.tool", "data.json"), capture_output=True).returncode == 1
    (hostile / "data.json").write_text('{"a": 1}')
    done = subprocess.run(
        processes.python_module("json.tool", "--compact", "data.json"), capture_output=True, text=True
    )
    assert done.stdout == '{"a":1}\n'


def test_pythonpath_still_counts(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    mine = tmp_path_factory.mktemp("mine")
    (mine / "my_module.py").write_text("print('mine')\n")
    environment = processes.child_environment({"PYTHONPATH": str(mine)})
    done = subprocess.run(processes.python_module("my_module"), capture_output=True, text=True, env=environment)
    assert done.stdout == "mine\n", done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
def test_grandchildren_too(hostile: Path) -> None:
    grandchild = [sys.executable, "-m", "json.tool", "--help"]
    code = f"import subprocess; raise SystemExit(subprocess.run({grandchild!r}).returncode)"
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.run(command, capture_output=True, env=processes.child_environment()).returncode == 0
    assert ran(hostile) == []


def test_a_spawned_pool(hostile: Path) -> None:
    # From a process of its own: in this one multiprocessing's helpers may be running already.
    code = (
        "import sys; from multiprocessing import get_context; from jrt_eval.processes import safe_multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    with safe_multiprocessing(), get_context('spawn').Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, 2, -3]))"
    )
    script = hostile / "scripts" / "run.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.stdout, ran(hostile)) == ("[1, 2, 3]\n", []), done.stderr


def test_every_pool_of_ours_is_safe() -> None:
    """Whatever asks multiprocessing for a context does so inside `safe_multiprocessing`."""
    root = Path(__file__).parents[1]
    unsafe, found = [], 0
    for path in (
        path for folder in ("jrt_eval", "model_adapters", "benchmarks") for path in (root / folder).rglob("*.py")
    ):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        safe = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.With)
            and "safe_multiprocessing()" in map(ast.unparse, (i.context_expr for i in node.items))
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            called = ast.unparse(node.func).rsplit(".", 1)[-1] if isinstance(node, ast.Call) else ""
            if called in ("get_context", "ProcessPoolExecutor", "set_start_method"):
                found += 1
                unsafe += [] if id(node) in safe else [f"{path.relative_to(root)}:{node.lineno}"]
    assert found
    assert unsafe == []


def test_the_environment_is_as_before_afterwards() -> None:
    before = os.environ.get("PYTHONSAFEPATH")
    with processes.safe_multiprocessing():
        assert get_context("spawn")
    assert os.environ.get("PYTHONSAFEPATH") == before


@pytest.mark.parametrize("version", ["3.10"])
def test_on_pythons_without_the_flag(hostile: Path, version: str) -> None:
    python = next(iter(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), None) or shutil.which(
        f"python{version}"
    )
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip(f"no Python {version} here")
    path = processes.__file__
    script = hostile / "scripts" / "run.py"
    script.parent.mkdir()
    script.write_text(
        "import importlib.util, subprocess, sys\n"
        f"spec = importlib.util.spec_from_file_location('processes', {path!r})\n"
        "processes = importlib.util.module_from_spec(spec); spec.loader.exec_module(processes)\n"
        "from multiprocessing import get_context\n"
        "if __name__ == '__main__':\n"
        "    command = processes.python_module('json.tool', '--help')\n"
        "    assert '-P' not in command\n"
        "    print(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)\n"
        "    with processes.safe_multiprocessing(), get_context('spawn').Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, 2, -3]))\n"
    )
    done = subprocess.run([str(python), str(script)], capture_output=True, text=True)
    assert (done.stdout, ran(hostile)) == ("0\n[1, 2, 3]\n", []), done.stderr
