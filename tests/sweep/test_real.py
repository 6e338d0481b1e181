"""The real lm_eval on random models: what a kill leaves, what a broken task costs, the smoke sweep on both engines."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.sweep.job import LM_EVAL
from jrt_eval.sweep.random_models import make

pytestmark = pytest.mark.slow
JRT_EVAL = (sys.executable, "-c", "from jrt_eval.cli import main; main()", "sweep")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _answered(folder: Path) -> int:
    """How many prompts stand in lm-eval's cache."""
    for path in folder.glob("jobs/*/cache/*.db"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.05) as cache:
                return int(cache.execute("select count(*) from unnamed").fetchone()[0])
        except sqlite3.Error:
            return 0
    return 0


def _answers(folder: Path) -> dict[str, list[str]]:
    found = {}
    for path in folder.glob("results/*/*/samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parts[-3]] = [row["filtered_resps"][0] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return found


def test_kill_nine_of_job_and_sweep_keeps_every_answer(toys: Any) -> None:
    make("gpt2", toys.folder / "tiny")
    # Long answers, one at a time, so that there is time to kill in.
    file = toys.file(
        models=[{"name": "first", "type": "hf", "args": {"pretrained": "./tiny"}}],
        tasks=["toys"],
        gen_kwargs={"max_gen_toks": 60, "until": ["never"]},
        batch_size=2,
        metadata={},
    )
    sweep = toys.spawn(file, command=LM_EVAL)
    toys.wait_for(lambda: _answered(toys.out) >= 3, "three answers")
    os.killpg(toys.status()["pid"], signal.SIGKILL)  # the job, as the kernel does out of memory
    toys.wait_for(lambda: toys.status()["attempt"] == 2, "a second attempt")
    before = _answered(toys.out)
    toys.wait_for(lambda: _answered(toys.out) > before, "it goes on")
    pid = toys.status()["pid"]
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    toys.wait_for(lambda: not toys.alive(pid), "the job dies with the sweep")
    kept = _answered(toys.out)
    assert 3 <= kept < 48
    assert toys.there() == set()

    sweep = toys.spawn(file, command=LM_EVAL)
    out, _ = sweep.communicate()
    assert sweep.returncode == 0, out
    assert toys.there() == {"first__toy_a", "first__toy_b"}
    (log,) = (toys.out / "jobs").glob("*/log.txt")
    # The toy tasks ask the same questions, so a cached answer serves both.
    said = log.read_text().partition("Cached requests: ")[2].partition(",")[0]
    assert int(said) >= kept
    (record,) = (toys.out / "results").glob("first__toy_a/.record.json")
    assert set(json.loads(record.read_text())["versions"]) == {"jrt-eval", "lm_eval", "torch", "transformers"}

    broken_up = _answers(toys.out)
    toys.out = toys.folder / "in one go"
    assert toys.spawn(file, command=LM_EVAL).wait() == 0
    assert _answers(toys.out) == broken_up


def test_a_broken_task_of_lm_eval_costs_only_itself(toys: Any) -> None:
    path = toys.folder / "tasks" / "toy_b.yaml"
    path.write_text(path.read_text().replace("{{question}}", "{{ question | no_such_filter }}"))
    file = toys.file(tasks=["toys"], metadata={}, models=[{"name": "first", "type": "dummy"}])
    ran = subprocess.run([*JRT_EVAL, str(file), "-o", str(toys.out)], capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert toys.there() == {"first__toy_a"}
    assert "No filter named 'no_such_filter'" in ran.stdout
    seen = subprocess.run([*JRT_EVAL, "status", str(toys.out)], capture_output=True, text=True)
    assert seen.returncode == 1
    assert "failed" in seen.stdout


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_smoke_sweep(tmp_path: Path, engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'jrt-eval[sweep]'")
    run = [*JRT_EVAL, "smoke", "-o", str(tmp_path / "smoke"), "--engine", engine, "--set", "limit=2"]
    ran = subprocess.run(run, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "8 of 8 results; jobs: 4 done" in ran.stdout
    assert len(_answers(tmp_path / "smoke")) == 8
    from jrt_eval import load_results

    scores = load_results(tmp_path / "smoke").scores
    assert set(scores["task"]) == {"jrt_sample", "jrt_sample_twice"}
    assert len(scores["model"].unique()) == 2
