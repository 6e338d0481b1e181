"""Running, failing, retrying, resuming: with real processes and a stand-in for lm_eval."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.sweep.job import MARK
from jrt_eval.sweep.local import LocalEngine
from jrt_eval.sweep.run import run_sweep

ALL = {"first__toy_a", "first__toy_b", "first__toy_c"}


def go(toys: Any, **keys: Any) -> int:
    engine = keys.pop("engine", None)
    resume = keys.pop("resume", True)
    return run_sweep(toys.sweep(**keys), toys.out, engine=engine, resume=resume, command=toys.stand_in)


def test_one_process_loads_a_model_for_all_its_tasks(toys: Any) -> None:
    assert go(toys) == 0
    assert toys.there() == ALL
    assert [start["tasks"] for start in toys.starts()] == [["toy_a", "toy_b", "toy_c"]]
    # each unit stands alone, in lm-eval's own form
    (results,) = (toys.out / "results" / "first__toy_b").rglob("results_*.json")
    assert set(json.loads(results.read_text())["results"]) == {"toy_b"}
    assert len(list(results.parent.glob("samples_toy_b_*.jsonl"))) == 1
    assert not list((toys.out / "jobs").glob("*/cache"))


def test_a_process_per_task_where_asked(toys: Any) -> None:
    assert go(toys, job="task") == 0
    assert sorted(start["tasks"] for start in toys.starts()) == [["toy_a"], ["toy_b"], ["toy_c"]]


def test_a_group_is_recorded_task_by_task(toys: Any) -> None:
    assert go(toys, tasks=["toys"]) == 0
    assert toys.there() == {"first__toy_a", "first__toy_b"}


def test_nothing_runs_twice(toys: Any) -> None:
    assert go(toys, tasks=["toy_a"]) == 0
    assert go(toys) == 0
    assert go(toys) == 0
    assert [start["tasks"] for start in toys.starts()] == [["toy_a"], ["toy_b", "toy_c"]]


@pytest.mark.parametrize(
    "change",
    [
        {"num_fewshot": 2},
        {"limit": 3},
        {"context_length": 512},
        {"models": [{"name": "first", "type": "dummy", "args": {"pretrained": "a/first", "revision": "v2"}}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_run_again_and_the_old_results_are_set_aside(toys: Any, change: dict[str, Any]) -> None:
    go(toys)
    assert go(toys, **change) == 0
    assert len(toys.starts()) == 2
    aside = list((toys.out / "set_aside").iterdir())
    assert {path.name.partition(".")[0] for path in aside} == ALL
    assert not list((toys.out / "set_aside").rglob("results_*.json")), "readers would take them for results"
    assert len(list((toys.out / "set_aside").rglob("results_*.json.old"))) == 3


def test_batch_size_and_resources_change_no_result(toys: Any) -> None:
    go(toys)
    assert go(toys, batch_size=2, resources={"gpus": 0, "cpus": 2}, time_limit="1h") == 0
    assert len(toys.starts()) == 1


def test_an_edited_task_runs_again(toys: Any) -> None:
    go(toys)
    path = toys.folder / "tasks" / "toy_a.yaml"
    path.write_text(path.read_text().replace("{{question}}", "{{question}} "))
    assert go(toys) == 0
    assert len(toys.starts()) == 2


def test_other_versions_run_again(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go(toys)
    monkeypatch.setattr("jrt_eval.sweep.plan.version", lambda name: "99.0")
    go(toys)
    assert len(toys.starts()) == 2


def test_a_checkpoint_that_changed_in_place_runs_again(toys: Any) -> None:
    checkpoint = toys.folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"n_layer": 2}')
    models = [{"name": "first", "type": "dummy", "args": {"pretrained": "./checkpoint"}}]
    go(toys, models=models)
    go(toys, models=models)
    assert len(toys.starts()) == 1
    (checkpoint / "config.json").write_text('{"n_layer": 3}')
    go(toys, models=models)
    assert len(toys.starts()) == 2


def test_a_hub_branch_that_moved_runs_again(toys: Any) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    refs = Path(HF_HUB_CACHE) / "models--jrt-eval-tests--moved" / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    models = [{"name": "first", "type": "dummy", "args": {"pretrained": "jrt-eval-tests/moved"}}]
    try:
        (refs / "main").write_text("a" * 40)
        go(toys, models=models)
        go(toys, models=models)
        assert len(toys.starts()) == 1
        (refs / "main").write_text("b" * 40)
        go(toys, models=models)
        assert len(toys.starts()) == 2
    finally:
        shutil.rmtree(refs.parent)


def test_no_resume_runs_all_again_and_deletes_nothing(toys: Any) -> None:
    go(toys)
    assert go(toys, resume=False) == 0
    assert len(toys.starts()) == 2
    assert len(list((toys.out / "set_aside").iterdir())) == 3


def test_a_broken_task_costs_only_itself(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    two = [{"name": name, "type": "dummy", "args": {"pretrained": f"a/{name}"}} for name in ("first", "second")]
    settings = [{"models": ["first"], "metadata": {"trouble": {"toy_b": "crash"}}}, {"models": ["second"]}]
    assert go(toys, models=two, settings=settings) == 1
    assert toys.there() == ALL - {"first__toy_b"} | {key.replace("first", "second") for key in ALL}
    assert [s["tasks"] for s in toys.starts() if s["model"] == "a/first"] == [
        ["toy_a", "toy_b", "toy_c"],
        ["toy_a"],
        ["toy_b"],
        ["toy_c"],
    ]
    status = toys.status()
    assert status["state"] == "failed"
    assert "this task is broken" in status["errors"]["toy_b"]
    said = capsys.readouterr().out
    assert "toy_b: RuntimeError: this task is broken (exit status 1)" in said
    assert "| RuntimeError: this task is broken" in said, "the log's last lines"
    # Repaired, it alone runs.
    assert go(toys, models=two, settings=[{"models": ["first"]}, {"models": ["second"]}]) == 0


def test_a_model_that_cannot_load_is_not_tried_for_every_task(toys: Any) -> None:
    broken = {"toy_a": "crash", "toy_b": "crash", "toy_c": "crash"}
    assert go(toys, metadata={"trouble": broken}) == 1
    assert len(toys.starts()) == 3  # all together, and two alone with the same words
    assert set(toys.status()["errors"]) == set(broken)


@pytest.mark.parametrize("kind", ["oom", "killed"])
def test_out_of_memory_comes_again_with_a_smaller_batch(toys: Any, kind: str) -> None:
    assert go(toys, metadata={"trouble": {"toy_b": kind}, "fits": 2}, batch_size="auto") == 0
    assert [start["batch"] for start in toys.starts()] == ["auto", 16, 8, 4, 2]
    assert toys.there() == ALL
    record = json.loads((toys.out / "results" / "first__toy_a" / ".record.json").read_text())
    assert record["batch_size"] == 2


def test_out_of_memory_at_batch_size_one_fails(toys: Any) -> None:
    assert go(toys, metadata={"trouble": {"toy_b": "oom"}}, batch_size=2) == 1
    assert [start["batch"] for start in toys.starts()] == [2, 1]
    assert "out of memory even with batch size 1" in toys.status()["error"]


def test_a_job_that_hangs_is_ended_with_all_its_processes_and_the_rest_goes_on(toys: Any) -> None:
    two = [{"name": name, "type": "dummy", "args": {"pretrained": f"a/{name}"}} for name in ("first", "second")]
    settings = [
        {"models": ["first"], "metadata": {"trouble": {"toy_a": "hang"}}, "time_limit": "3s"},
        {"models": ["second"]},
    ]
    # One CPU: the second job gets its turn only when the first has been ended.
    assert go(toys, models=two, settings=settings, engine=LocalEngine(cpus=1)) == 1
    assert "its time limit of 3 s" in toys.status()["error"]
    assert toys.there() == {key.replace("first", "second") for key in ALL}
    assert not _marked(toys.out)


def test_lm_eval_that_ends_well_without_results_is_a_failure(toys: Any) -> None:
    assert go(toys, metadata={"trouble": {"toy_b": "silent", "toy_c": "cut"}}) == 1
    assert toys.there() == {"first__toy_a"}
    assert "left no complete results" in toys.status()["errors"]["toy_c"]


def test_kill_nine_of_the_sweep_takes_the_jobs_along_and_loses_no_answer(toys: Any) -> None:
    file = toys.file(metadata={"answers": 40, "delay": 0.1})
    first = toys.spawn(file)
    cache = toys.wait_for(lambda: next((toys.out / "jobs").glob("*/cache/*.db"), None), "a cache")
    toys.wait_for(lambda: len(cache.read_text()) >= 5, "five answers")
    first.send_signal(signal.SIGKILL)
    first.wait()
    (pid,) = [start["pid"] for start in toys.starts()]
    toys.wait_for(lambda: not toys.alive(pid), "the job dies with the sweep")
    answered = len(cache.read_text())
    assert answered < 40
    assert toys.there() == set()

    assert toys.spawn(file).wait() == 0  # the dead sweep's lock stops nobody
    assert toys.there() == ALL
    assert len(toys.starts()) == 2


def test_what_outlived_a_killed_sweep_is_ended_by_the_next(toys: Any) -> None:
    import subprocess
    import sys

    sleeper = [sys.executable, "-c", "import time; time.sleep(1000)"]
    orphan = subprocess.Popen(sleeper, env={**os.environ, MARK: f"{toys.out}:first-0"})
    stranger = subprocess.Popen(sleeper, env={**os.environ, MARK: f"{toys.out}2:first-0"})
    try:
        # the kernel shows the new program's environment only once it runs
        toys.wait_for(lambda: len(_marked(toys.out)) == 1, "the orphan")
        assert go(toys) == 0
        assert orphan.wait(30) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        orphan.kill()
        stranger.kill()


def test_a_half_built_result_is_no_result(toys: Any) -> None:
    go(toys, tasks=["toy_a"])
    results = toys.out / "results"
    shutil.copytree(results / "first__toy_a", results / ".unfinished-first__toy_b-1-a")
    (results / "first__toy_a" / ".record.json").write_text('{"model": "fir')
    assert go(toys) == 0
    assert toys.there() == ALL
    assert not list(results.glob(".unfinished-*"))
    assert toys.starts()[1]["tasks"] == ["toy_a", "toy_b", "toy_c"]


def test_a_task_whose_name_begins_another_ones(toys: Any) -> None:
    names = ["toy", "toy_2hop", "toy_2", "toy_2026-01-01"]
    for name in names:
        text = (toys.folder / "tasks" / "toy_a.yaml").read_text().replace("toy_a", name)
        (toys.folder / "tasks" / f"{name}.yaml").write_text(text)
    assert go(toys, tasks=names) == 0
    assert toys.there() == {f"first__{name}" for name in names}
    for name in names:
        (samples,) = (toys.out / "results" / f"first__{name}").rglob("samples_*.jsonl")
        assert samples.name.startswith(f"samples_{name}_20")
    assert go(toys, tasks=names) == 0
    assert len(toys.starts()) == 1, "nothing that was finished ran again"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _flip_a_bit], ids=["gone", "truncated", "changed"])
@pytest.mark.parametrize("pattern", ["samples_*.jsonl", "results_*.json"])
def test_a_damaged_result_counts_as_not_done(toys: Any, damage: Any, pattern: str) -> None:
    go(toys)
    (file,) = (toys.out / "results" / "first__toy_b").rglob(pattern)
    damage(file)
    assert go(toys) == 0
    assert [start["tasks"] for start in toys.starts()] == [["toy_a", "toy_b", "toy_c"], ["toy_b"]]
    assert toys.there() == ALL
    assert [path.name.partition(".")[0] for path in (toys.out / "set_aside").iterdir()] == ["first__toy_b"]


def test_a_model_with_a_dot_in_front_is_visible_to_collect(toys: Any) -> None:
    from jrt_eval import load_results

    models = [{"name": ".mb", "type": "dummy", "args": {"pretrained": "a/mb"}}]
    assert go(toys, models=models, metadata={"model_folder": ".mb"}) == 0
    assert len(load_results(toys.out).scores["task"].unique()) == 3


def test_two_sweeps_on_one_folder_refuse_each_other(toys: Any) -> None:
    file = toys.file(metadata={"answers": 1000, "delay": 0.1})
    first = toys.spawn(file)
    try:
        toys.wait_for(toys.starts, "the first sweep's job")
        with pytest.raises(UserError, match=rf"belongs to a running sweep \(process {first.pid} "):
            go(toys)
    finally:
        first.send_signal(signal.SIGTERM)  # as a scheduler ends a job
        out, _ = first.communicate()
    (start,) = toys.starts()
    toys.wait_for(lambda: not toys.alive(start["pid"]), "SIGTERM ends the jobs too")
    assert toys.status()["state"] == "stopped", out


def test_a_folder_of_another_sweep_is_refused(toys: Any) -> None:
    go(toys)
    with pytest.raises(UserError, match="contains the sweep 'toys', not 'other'"):
        go(toys, name="other")
    assert toys.there() == ALL


def test_a_full_disk_is_said_before_anything_runs(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(toys.folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match="is full: 1 MiB free"):
        go(toys)
    assert toys.starts() == []


def test_a_disk_that_fills_up_stops_the_jobs_that_have_not_begun(
    toys: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [{"name": name, "type": "dummy", "args": {"pretrained": f"a/{name}"}} for name in ("first", "second")]
    usage = shutil.disk_usage(toys.folder)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: usage._replace(free=0) if toys.there() else usage._replace(free=1 << 40)
    )
    assert go(toys, models=two, engine=LocalEngine(cpus=1)) == 1
    assert toys.there() == ALL
    assert "second: waiting: the disk under" in capsys.readouterr().out


def test_gpus_are_shared_by_fractions_and_given_back(toys: Any) -> None:
    models = [{"name": f"m{i}", "type": "dummy", "args": {"pretrained": f"a/m{i}"}} for i in range(6)]
    models[5]["resources"] = {"gpus": 2}
    # Each holds its share for half a second, so that those that fit together do run together.
    wait = {"answers": 5, "delay": 0.1}
    engine = LocalEngine(gpus=["3", "GPU-5a"], cpus=8)
    assert go(toys, models=models, resources={"gpus": 0.5, "cpus": 1}, metadata=wait, engine=engine) == 0
    starts = toys.starts()
    assert (starts[0]["model"], starts[0]["gpus"]) == ("a/m5", "3,GPU-5a"), "both GPUs while they are free"
    assert sorted(start["gpus"] for start in starts[1:5]) == ["3", "3", "GPU-5a", "GPU-5a"]
    assert all(start["threads"] for start in starts)


def test_no_gpu_where_one_is_asked_for(toys: Any) -> None:
    with pytest.raises(
        UserError, match=r"asks for 1 GPU\(s\), and this process sees no GPU\(s\).*--set resources.gpus=0"
    ):
        go(toys, resources={"gpus": 1}, engine=LocalEngine(gpus=[]))
    assert not (toys.out / ".plan.json").exists()


def test_more_than_the_machine_has(toys: Any) -> None:
    with pytest.raises(UserError, match="asks for 512 CPUs"):
        go(toys, resources={"gpus": 0, "cpus": 512})
    with pytest.raises(UserError, match="of memory; here are"):
        go(toys, resources={"gpus": 0, "memory": "900TB"})


def _marked(out: Path) -> list[int]:
    mark = f"{MARK}={out}:".encode()
    pids = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if any(variable.startswith(mark) for variable in environ.read_bytes().split(b"\0")):
                pids.append(int(environ.parent.name))
        except OSError:
            continue
    return pids
