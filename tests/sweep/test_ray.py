"""The Ray engine on a real, local Ray: placing, sharing GPUs, and what happens when a worker or the sweep is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.sweep.run import run_sweep

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jrt-eval[sweep]'")

from jrt_eval.sweep.ray_engine import RayEngine  # noqa: E402

pytestmark = pytest.mark.slow
ALL = {"first__toy_a", "first__toy_b", "first__toy_c"}


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_jobs_share_the_gpus_that_ray_gives_them_and_fail_alone(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    models = [{"name": f"m{i}", "type": "dummy", "args": {"pretrained": f"a/m{i}"}} for i in range(3)]
    settings = [
        {"models": ["m0"], "metadata": {"trouble": {"toy_b": "crash"}}},
        {"models": ["m1"], "metadata": {"trouble": {"toy_b": "oom"}, "fits": 4}},
        {"models": ["m2"], "resources": {"gpus": 2}},
    ]
    sweep = toys.sweep(models=models, settings=settings, resources={"gpus": 0.5, "cpus": 1})
    assert run_sweep(sweep, toys.out, engine=RayEngine(), command=toys.stand_in) == 1
    assert len(toys.there()) == 8
    by_model = {start["model"]: start["gpus"] for start in toys.starts()}
    assert sorted(by_model["a/m2"].split(",")) == ["0", "1"]
    assert by_model["a/m0"] in ("0", "1")
    assert [start["batch"] for start in toys.starts() if start["model"] == "a/m1"] == [8, 4]
    assert "this task is broken" in capsys.readouterr().out


def test_a_killed_worker_and_then_a_killed_sweep_lose_no_answer(toys: Any) -> None:
    file = toys.file(metadata={"answers": 60, "delay": 0.1})
    sweep = toys.spawn(file, engine="ray")
    try:
        (start,) = toys.wait_for(toys.starts, "the job")
        cache = toys.wait_for(lambda: next((toys.out / "jobs").glob("*/cache/*.db"), None), "a cache")
        toys.wait_for(lambda: len(cache.read_text()) >= 3, "three answers")
        os.kill(_parent(start["pid"]), signal.SIGKILL)  # the Ray worker; its lm_eval must go with it
        toys.wait_for(lambda: not toys.alive(start["pid"]), "the job dies with its worker")
        again = toys.wait_for(lambda: toys.starts()[1:], "Ray runs it again")[0]
        before = len(cache.read_text())
        assert before >= 3
        toys.wait_for(lambda: len(cache.read_text()) > before, "it goes on from the cache")
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    toys.wait_for(lambda: not toys.alive(again["pid"]), "the job dies with the sweep")
    assert toys.there() == set()
    assert toys.spawn(file, engine="ray").wait() == 0
    assert toys.there() == ALL
    assert len(toys.starts()) == 3


def test_sigterm_ends_the_jobs_and_exits_with_130(toys: Any) -> None:
    file = toys.file(metadata={"answers": 1000, "delay": 0.1})
    sweep = toys.spawn(file, engine="ray")
    (start,) = toys.wait_for(toys.starts, "the job")
    sweep.send_signal(signal.SIGTERM)
    out, _ = sweep.communicate(timeout=60)
    toys.wait_for(lambda: not toys.alive(start["pid"]), "the job ends too")
    assert sweep.returncode == 130, out
    assert "SIGTERM" not in out, "a dump by Ray"
    assert "Traceback" not in out


def test_a_cluster_by_its_address(toys: Any, tmp_path: Path) -> None:
    tool = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false", "--block"]
    # --block, so that the cluster is a child to be ended and not a daemon to be left behind.
    with open(tmp_path / "head.log", "w") as log:
        cluster = subprocess.Popen([*tool, *head], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        said = tmp_path / "head.log"
        toys.wait_for(lambda: "Ray runtime started" in said.read_text(), "the cluster")
        address = said.read_text().partition("--address='")[2].partition("'")[0]
        assert run_sweep(toys.sweep(), toys.out, engine=RayEngine(address), command=toys.stand_in) == 0
        assert toys.there() == ALL
    finally:
        cluster.terminate()
        cluster.wait(60)


def test_what_no_machine_has_and_a_cluster_that_is_not_there(toys: Any) -> None:
    with pytest.raises(UserError, match=r"no machine of the Ray cluster can run job first.*asks for 64 GPU"):
        run_sweep(toys.sweep(resources={"gpus": 64}), toys.out, engine=RayEngine(), command=toys.stand_in)
    assert not (toys.out / ".plan.json").exists()
    assert not ray.is_initialized()
    with pytest.raises(UserError, match=r"cannot reach Ray at '127\.0\.0\.1:1': Connection refused"):
        run_sweep(toys.sweep(), toys.out, engine=RayEngine("127.0.0.1:1"), command=toys.stand_in)
