"""Whole runs: deterministic, resumable after a kill, one at a time in an output folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from training_helpers import content, losses, tiny

from jrt_eval.errors import UserError
from jrt_eval.files import lock
from jrt_eval.models import load_model
from jrt_eval.training import checkpoint
from jrt_eval.training.trainer import train

FAMILIES = ["jrt", "based", "attn", "mamba"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_overfits_a_batch(tmp_path: Path, family: str) -> None:
    rows = {"name": "mqar", "rows": 8, "options": {"length": 25, "pairs": 3, "vocabulary": 56}}
    config = tiny(
        tmp_path,
        family,
        data={"lengths": [40], "synthetic": rows},
        steps=150,
        save_every=150,
        optimizer={"lr": 2e-2, "min_lr": 1e-3},
    )
    config.objective.mlm_weight, config.objective.mask_probability = 0.0, 0.0
    config.objective.context_weight = 0.0  # only the answers: keys and values in the context are random
    train(config, progress=False)
    loss = losses(config)
    assert float(loss[1]) > 3.0
    assert float(loss[150]) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_what_the_adapter_loads(tmp_path: Path, family: str) -> None:
    config = tiny(tmp_path, family, steps=3, export_dtype="bfloat16")
    folder = train(config, progress=False)
    from jrt_eval.training.objective import Trainable, build_model

    mine = build_model(config.model, "torch", 0)
    checkpoint.load_weights(folder, mine)
    ids = torch.randint(0, 56, (2, 24))
    trainable = Trainable(mine, encoder=family == "jrt")
    with torch.no_grad():
        expected = mine.logits(trainable.hidden(ids, torch.zeros(2, dtype=torch.int64), torch.full((2,), 16)))  # type: ignore[operator]
        got = load_model(str(folder), dtype="float32")(ids).logits
    torch.testing.assert_close(got[..., :250].float(), expected[..., :250], atol=2e-5, rtol=1e-4)
    exported = load_model(str(Path(config.output) / "model"))
    assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    runs = [
        tiny(tmp_path, "jrt", output=str(tmp_path / name), seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    for run in runs:
        train(run, progress=False)
    first, second, other = map(losses, runs)
    assert first == second != other


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = tiny(tmp_path, "jrt", output=str(tmp_path / "whole"))
    parts = tiny(tmp_path, "jrt", output=str(tmp_path / "parts"), micro_batch=2)
    for config in (whole, parts):
        train(config, progress=False)
    for one, two in zip(losses(whole).values(), losses(parts).values(), strict=True):
        assert float(one) == pytest.approx(float(two), rel=1e-4)


def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    unbroken = tiny(tmp_path, "jrt", output=str(tmp_path / "unbroken"), steps=60, save_every=5)
    train(unbroken, progress=False)
    settings = content(tmp_path, "jrt", output=str(tmp_path / "killed"), steps=60, save_every=5)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    killed = tiny(tmp_path, "jrt", output=str(tmp_path / "killed"), steps=60, save_every=5)
    command = [sys.executable, "-m", "jrt_eval", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = Path(killed.output) / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(checkpoint.step_of(p) >= 10 for p in checkpoint.existing(root)) and time.monotonic() < deadline:
        time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped = checkpoint.step_of(checkpoint.existing(root)[-1])
    assert 10 <= stopped < 60
    train(killed, progress=False)
    assert losses(killed) == losses(unbroken)
    ours, theirs = (checkpoint.existing(Path(c.output) / "checkpoints")[-1] for c in (killed, unbroken))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    alone = tiny(tmp_path, "jrt", output=str(tmp_path / "alone"), steps=6)
    train(alone, progress=False)
    together = tiny(tmp_path, "jrt", output=str(tmp_path / "together"), steps=6)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path, "jrt", output=together.output, steps=6)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "jrt_eval", "train", str(path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=120)

    first = run()
    assert first.returncode == 0, first.stderr
    expected = [float(loss) for loss in losses(alone).values()]
    assert [float(loss) for loss in losses(together).values()] == pytest.approx(expected, rel=1e-4)
    last, previous = reversed(checkpoint.existing(Path(together.output) / "checkpoints"))
    shutil.rmtree(last)
    second = run()
    assert second.returncode == 0, second.stderr
    assert checkpoint.step_of(previous) == 3
    assert [float(loss) for loss in losses(together).values()] == pytest.approx(expected, rel=1e-4)
    refused = run("--set", "batch_size=7", "--set", f"output={tmp_path / 'refused'}")
    assert "batch_size 7 does not split over 2 processes" in refused.stderr


def test_no_data_and_rows_that_do_not_fit(tmp_path: Path) -> None:
    for changes, says in [
        ({"lengths": [40], "files": [str(tmp_path / "none-*.txt")]}, "no file matches"),
        ({"lengths": [4], "synthetic": content(tmp_path)["data"]["synthetic"]}, "longer than 4 tokens"),
        ({"lengths": [40], "synthetic": {"name": "mqra", "rows": 4}}, "did you mean 'mqar'"),
        ({"lengths": [40], "synthetic": {"name": "mqar", "rows": 4, "options": {"pair": 1}}}, "did you mean 'pairs'"),
        ({"lengths": [40], "synthetic": {"name": "mqar", "rows": 0}}, "no data"),
    ]:
        with pytest.raises(UserError) as raised:
            train(tiny(tmp_path, data=changes, tokenizer="mini"), progress=False)
        assert says in str(raised.value)


def test_tokens_outside_of_the_vocabulary(tmp_path: Path) -> None:
    rows = {"name": "mqar", "rows": 64, "options": {"length": 25, "pairs": 3, "vocabulary": 900}}
    with pytest.raises(UserError, match="the model has 256 rows"):
        train(tiny(tmp_path, data={"lengths": [40], "synthetic": rows}), progress=False)


def test_validation_and_metrics(tmp_path: Path) -> None:
    data = content(tmp_path)["data"]
    config = tiny(tmp_path, "jrt", validation=data, validate_every=3, precision="bf16")
    train(config, progress=False)
    lines = (Path(config.output) / "validation.csv").read_text().splitlines()
    assert lines[0] == "step,loss,answer_tokens,answers"
    assert [line.split(",")[0] for line in lines[1:]] == ["3", "6"]
    state = json.loads((Path(config.output) / "checkpoints/step-0000006/training/state.json").read_text())
    assert (state["step"], state["epoch"], state["batch"]) == (6, 0, 6)


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path, steps=2, learning_rate=1)))
    command = [sys.executable, "-m", "jrt_eval", "train", str(path)]
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines() == [f"jrt-eval: error: {path}: unknown key 'learning_rate'"]


def test_a_second_run_in_the_same_output_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, steps=3)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path, steps=3)))
    command = [sys.executable, "-m", "jrt_eval", "train", str(path)]
    with lock(Path(config.output) / ".lock", "held by another test"):
        with pytest.raises(UserError, match=f"another run trains in .* \\(process {os.getpid()} on "):
            train(config, progress=False)
        refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("jrt-eval: error: another run trains in ")
    assert not (Path(config.output) / "metrics.csv").exists()
    train(config, progress=False)


def test_another_runs_checkpoint_is_neither_resumed_nor_renamed(tmp_path: Path) -> None:
    folder = train(tiny(tmp_path, steps=3), progress=False)
    with pytest.raises(UserError, match=r"another .*seed"):
        train(tiny(tmp_path, steps=3, seed=5), progress=False)
    assert folder.is_dir()
