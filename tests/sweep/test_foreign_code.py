"""A sweep inside a stranger's folder runs nothing of that folder, whatever its modules are called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.sweep.job import LM_EVAL

HOSTILE = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch(); raise SystemExit(f'{__file__} ran')\n"
NAMES = ("ctypes", "json", "runpy", "signal", "yaml", "torch", "transformers", "jrt_eval", "click", "tempfile")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "stranger"
    (folder / "lm_eval").mkdir(parents=True)
    (folder / "lm_eval" / "__init__.py").write_text(HOSTILE)
    (folder / "lm_eval" / "__main__.py").write_text(HOSTILE)
    for name in NAMES:
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


def ran(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.ran")]


def run_inside(folder: Path, toys: Any, engine: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    script = toys.folder / "scripts" / "run_it.py"
    script.parent.mkdir()
    script.write_text(toys.program(toys.file(tasks=["toy_a"]), command=command, engine=engine))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_neither_engine_imports_from_the_current_folder(hostile: Path, toys: Any, engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'jrt-eval[sweep]'")
    done = run_inside(hostile, toys, engine, toys.stand_in)
    assert (done.returncode, ran(hostile)) == (0, []), done.stdout + done.stderr
    assert toys.there() == {"first__toy_a"}
    assert toys.starts()[0]["folder"] == str(hostile), "the job itself starts where the user did"


def test_lm_eval_is_the_installed_one(hostile: Path) -> None:
    done = subprocess.run([*LM_EVAL[:-1], "--help"], capture_output=True, text=True, cwd=hostile, env=dict(os.environ))
    assert (done.returncode, ran(hostile)) == (0, []), done.stderr
    assert "usage: lm" in done.stdout


@pytest.mark.slow
def test_rays_workers_do_not_search_the_current_folder(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jrt-eval[sweep]'")
    from jrt_eval.sweep.ray_engine import RayEngine

    monkeypatch.chdir(hostile)
    engine = RayEngine()
    engine.check([])
    try:
        searched = ray.get(ray.remote(lambda: __import__("sys").path).remote())
    finally:
        ray.shutdown()
    assert str(hostile) not in searched
    assert "" not in searched
    assert Path.cwd() == hostile
