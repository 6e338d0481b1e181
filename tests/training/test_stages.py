"""A configuration in stages: each starts from the weights of the one before, and the whole resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from training_helpers import content, losses

from jrt_eval.errors import UserError
from jrt_eval.training import checkpoint
from jrt_eval.training.stages import load_stages, train_stages

CONFIGS = Path(__file__).parents[2] / "configs"


def _write(folder: Path, stages: Any, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**content(folder, "based", **changes), "stages": stages}))
    return path


def test_stages_merge_and_follow_each_other(tmp_path: Path) -> None:
    first = {"steps": 4, "model": {"n_layer": 2, "alt_mixer_2_layers": []}, "optimizer": {"lr": 1e-3}}
    path = _write(tmp_path, [first, {"steps": 5}])
    configs = load_stages(path, ["seed=3"])
    assert [c.output for c in configs] == [str(tmp_path / "run" / "stage-1"), str(tmp_path / "run")]
    assert [(c.steps, c.model["n_layer"], c.optimizer.lr, c.seed) for c in configs] == [
        (4, 2, 1e-3, 3),
        (5, 3, 5e-3, 3),
    ]
    assert configs[0].optimizer.min_lr == configs[1].optimizer.min_lr == 1e-4
    assert train_stages(configs, progress=False) == tmp_path / "run" / "checkpoints" / "step-0000005"
    whole = [losses(config) for config in configs]
    for config in configs:  # a kill in the middle of the second stage
        last = checkpoint.existing(Path(config.output) / "checkpoints")[-1]
        if config.steps == 5:
            (last / "model.safetensors").unlink()
    train_stages(configs, progress=False)
    assert [losses(config) for config in configs] == whole


def test_a_stage_starts_from_the_weights_of_the_one_before(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"steps": 4}, {"steps": 1, "optimizer": {"lr": 1e-12, "min_lr": 0.0}}])
    train_stages(load_stages(path), progress=False)
    root = tmp_path / "run"
    first = load_file(root / "stage-1" / "checkpoints" / "step-0000004" / "model.safetensors")
    second = load_file(root / "checkpoints" / "step-0000001" / "model.safetensors")
    assert all((first[key] - second[key]).abs().max() < 1e-6 for key in first)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "stages: expected a list of keys and values, got []"),
        ({"steps": 1}, "stages: expected a list"),
        ([1], "stages: expected a list"),
        ([{"stpes": 1}, {}], "stage 1: unknown key 'stpes' (did you mean 'steps'?)"),
        ([{}, {"steps": 0}], "stage 2: steps: must be at least 1"),
        ([{}, {"init_from": "x"}], "stage 2: init_from: a stage starts from the weights of the one before"),
    ],
)
def test_mistakes_name_the_stage(tmp_path: Path, stages: Any, says: str) -> None:
    with pytest.raises(UserError) as raised:
        load_stages(_write(tmp_path, stages))
    assert says in str(raised.value)


@pytest.mark.parametrize("name", ["attn", "based", "jrt", "mamba"])
def test_a_mini_trains_from_scratch(tmp_path: Path, name: str) -> None:
    """The documented command with few steps and rows: all stages run, each from the weights of the one before."""
    small = ["steps=2", "batch_size=2", "data.synthetic.rows=40", "validation.synthetic.rows=4", "validate_every=2"]
    small += [f"output={tmp_path}/run", f"cache={tmp_path}/tokens", "tensorboard=false", "backend=torch"]
    configs = load_stages(CONFIGS / "mini" / f"{name}.yaml", small)
    assert len(configs) == 3
    assert all(config.init_from is None for config in configs)  # each follows the one before
    assert train_stages(configs, progress=False).name == "step-0000002"
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    for number in (1, 2):
        assert (tmp_path / "run" / f"stage-{number}" / "validation.csv").is_file()
