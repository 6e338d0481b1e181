"""Checkpoints hold finite weights, a damaged one is passed over, and a full disk leaves the previous one."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import losses, tiny

from jrt_eval.errors import UserError
from jrt_eval.training import checkpoint
from jrt_eval.training.trainer import TrainingRun, train


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, steps=3)
    before = train(config, progress=False)
    weights = (before / "model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    more = tiny(tmp_path, steps=6, output=str(tmp_path / "more"), init_from=str(before))
    train(tiny(tmp_path, steps=6, output=str(tmp_path / "more"), init_from=str(before)), progress=False)
    root = Path(more.output) / "checkpoints"
    for newest in checkpoint.existing(root)[1:]:
        shutil.rmtree(newest)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"step 6 .*No space left on device; .*step-0000003 is unchanged"):
        train(more, progress=False)
    monkeypatch.undo()
    assert [p.name for p in root.iterdir()] == ["step-0000003"]
    assert checkpoint.step_of(train(more, progress=False)) == 6
    assert (before / "model.safetensors").read_bytes() == weights


def _with_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["transformer.ln_f.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    good = train(tiny(tmp_path, steps=3, output=str(tmp_path / "good")), progress=False)
    _with_nan(good)
    with pytest.raises(UserError, match=r"the loss is nan at step 1; no checkpoint was written yet"):
        train(tiny(tmp_path, init_from=str(good)), progress=False)


@pytest.mark.parametrize("part", ["weight", "moment"])
def test_a_checkpoint_is_never_replaced_by_one_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The loss of step 6 is finite; the update of that step is not."""
    config = tiny(tmp_path, steps=6, keep=1)
    whole = TrainingRun.train_step

    def spoiled(run: TrainingRun, step: int, batch: Any) -> Any:
        result = whole(run, step, batch)
        if step == 6:
            parameter = next(p for p in run.model.parameters() if p.dim() == 1)
            tensor = parameter.data if part == "weight" else run.optimizer.state[parameter]["exp_avg_sq"]
            tensor[0] = float("inf")
        return result

    monkeypatch.setattr(TrainingRun, "train_step", spoiled)
    with pytest.raises(UserError, match=r"is not finite after step 6; the last good checkpoint is .*step-0000003"):
        train(config, progress=False)
    monkeypatch.undo()
    assert [p.name for p in (Path(config.output) / "checkpoints").iterdir()] == ["step-0000003"]
    assert checkpoint.step_of(train(config, progress=False)) == 6


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _change(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "training" / name
        if name == "state.json":
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        else:
            torch.save(change(torch.load(path, weights_only=True)), path)

    return damage


def _wrong_moments(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["exp_avg"] = torch.zeros(3)
    return state


class _Code:
    """A pickle that would run code; weights_only refuses it."""

    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "half the weights": _truncate("model.safetensors"),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b"") and None,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights that are not finite": _with_nan,
    "weights of other shapes": lambda folder: save_file({"x": torch.zeros(2)}, folder / "model.safetensors"),
    "half the optimiser": _truncate("training/optimizer.pt"),
    "empty optimiser": lambda folder: (folder / "training" / "optimizer.pt").write_bytes(b"") and None,
    "no optimiser": lambda folder: (folder / "training" / "optimizer.pt").unlink(),
    "an optimiser of other shapes": _change("optimizer.pt", _wrong_moments),
    "an optimiser without groups": _change("optimizer.pt", lambda state: {"state": state["state"]}),
    "a list for an optimiser": _change("optimizer.pt", lambda state: [1]),
    "code for an optimiser": _change("optimizer.pt", lambda state: _Code()),
    "half the state": _truncate("training/state.json"),
    "no state": lambda folder: (folder / "training" / "state.json").unlink(),
    "a list for a state": _change("state.json", lambda state: [1]),
    "the state of another step": _change("state.json", lambda state: {**state, "step": 4}),
    "a state without a configuration": _change("state.json", lambda state: {"step": 6}),
    "no training folder": lambda folder: shutil.rmtree(folder / "training"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(tiny(folder, steps=9), progress=False)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    expected = losses(tiny(finished, steps=9))
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = tiny(tmp_path, steps=9)
    root = Path(config.output) / "checkpoints"
    DAMAGE[kind](root / "step-0000009")
    with caplog.at_level(logging.WARNING):
        assert train(config, progress=False) == root / "step-0000009"
    lines = [record.getMessage() for record in caplog.records]
    assert any("step-0000009 is damaged (" in line for line in lines), lines
    assert any(line.endswith("resuming from " + str(root / "step-0000006")) for line in lines)
    assert all("\n" not in line for line in lines)
    assert losses(config) == expected
    names = sorted(path.name for path in root.iterdir())
    assert names[1:] == ["step-0000006", "step-0000009"]
    assert names[0].startswith("damaged-step-0000009-")
    assert "must not run" not in capfd.readouterr().out


def test_no_intact_checkpoint_is_said_before_training_from_the_start(tmp_path: Path) -> None:
    config = tiny(tmp_path, steps=6)
    root = Path(config.output) / "checkpoints"
    train(config, progress=False)
    for folder in checkpoint.existing(root):
        (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no checkpoint under .* is intact"):
        train(config, progress=False)
    assert checkpoint.step_of(train(config, progress=False)) == 6


def test_folders_with_other_names_are_left_alone(tmp_path: Path) -> None:
    config = tiny(tmp_path, steps=3, keep=1)
    root = Path(config.output) / "checkpoints"
    names = ["step-best", "step-", "step-12x", "step-0000001-copy", "other"]
    for name in names:
        (root / name).mkdir(parents=True)
    (root / "step-0000099").write_text("a file")
    assert train(config, progress=False).name == "step-0000003"
    assert sorted(path.name for path in root.iterdir()) == sorted([*names, "step-0000099", "step-0000003"])
