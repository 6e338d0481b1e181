"""Configurations: the shipped ones build the models they name, and every mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jrt_eval.errors import UserError
from jrt_eval.settings import read_settings
from jrt_eval.training.config import Config, encoder_length
from jrt_eval.training.objective import build_model
from jrt_eval.training.optimizer import learning_rate, parameter_groups
from jrt_eval.training.stages import load_stages

CONFIGS = Path(__file__).parents[2] / "configs"

# Parameters of the released files.
RELEASED = {
    "jrt-360m": 356_578_304,
    "jrt-1b": 1_375_143_168,
    "based-360m": 362_620_928,
    "based-1b": 1_349_453_056,
    "attn-360m": 359_810_048,
    "attn-1b": 1_303_856_400,
    "mamba-360m": 358_190_080,
    "mamba-1b": 1_319_311_360,
}


@pytest.mark.parametrize("name", RELEASED)
def test_paper_configs_have_the_released_sizes_and_recipe(name: str) -> None:
    config = load_config(CONFIGS / "paper" / f"{name}.yaml")
    model = build_model(config.model, config.backend, seed=0, device="meta")
    assert sum(p.numel() for p in model.parameters()) == RELEASED[name]
    assert config.steps == (100_000 if name.endswith("1b") else 60_000)
    assert (config.batch_size, max(config.data.lengths)) == (256, 2048)
    assert config.objective.kind == ("jrt" if name.startswith("jrt") else "ntp")
    assert encoder_length(config.model) == (1024 if name.startswith("jrt") else None)


@pytest.mark.parametrize("name", ["jrt", "based", "mamba", "attn"])
def test_mini_configs_are_of_one_size(name: str) -> None:
    config = load_config(CONFIGS / "mini" / f"{name}.yaml")
    model = build_model(config.model, config.backend, seed=0, device="meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.97e6, rel=0.08)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    return load_stages(path, overrides)[-1]


def _write(folder: Path, **changes: Any) -> Path:
    content = read_settings(CONFIGS / "mini" / "jrt.yaml")
    for key, value in content.pop("stages")[-1].items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    content["model"]["alt_mixer"] = {"_target_": "PrefixLinearAttention", "feature_dim": 3, "enc_length": 576}
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimiser": {}}, "unknown key 'optimiser' (did you mean 'optimizer'?)"),
        ({"optimizer__warm_up": 0.1}, "unknown key 'warm_up' (did you mean 'warmup'?)"),
        ({"objective__kind": "jtr"}, "did you mean 'jrt'"),
        ({"steps": "many"}, "steps: expected an integer"),
        ({"steps": 0}, "steps: must be at least 1"),
        ({"micro_batch": 7}, "does not divide batch_size"),
        ({"data__lengths": [512]}, "leaves nothing to predict"),
        ({"data__files": ["x.txt"]}, "exactly one of files, dataset and synthetic"),
        ({"model__n_positions": 600, "model__max_position_embeddings": 600}, "longer than the model's window of 600"),
        ({"objective__mask_token_id": 50263}, "outside of the model's 4096 rows"),
        ({"precision": "fp8"}, "precision"),
        (
            {"model__alt_mixer_layers": [1, 9]},
            "model.alt_mixer_layers: 9 is not one of the 9 layers, which are counted from 0",
        ),
        ({"tokenizer": None}, "tokenizer"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(_write(tmp_path, **changes))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_and_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training configuration"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "short.yaml").write_text("output: runs/x\n")
    with pytest.raises(UserError, match="model, data, steps, batch_size must be given"):
        load_config(tmp_path / "short.yaml")


def test_overrides(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path), ("optimizer.lr=3e-4", "steps=7", "data.synthetic.rows=9"))
    assert (config.optimizer.lr, config.steps) == (3e-4, 7)
    assert config.data.synthetic is not None
    assert config.data.synthetic.rows == 9
    with pytest.raises(UserError, match="write key=value"):
        load_config(_write(tmp_path), ("steps",))


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    config = load_config(CONFIGS / "paper" / "jrt-360m.yaml").optimizer
    assert learning_rate(config, 300, 60_000) == pytest.approx(4e-4)
    assert learning_rate(config, 600, 60_000) == pytest.approx(8e-4)
    assert learning_rate(config, 600 + 29_700, 60_000) == pytest.approx((8e-4 + 8e-5) / 2)
    assert learning_rate(config, 60_000, 60_000) == pytest.approx(8e-5)


@pytest.mark.parametrize("name", ["jrt", "mamba"])
def test_no_decay_on_vectors(name: str) -> None:
    config = load_config(CONFIGS / "mini" / f"{name}.yaml")
    model = build_model(config.model, config.backend, seed=0, device="meta")
    decayed, spared = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    free = {names[id(p)] for p in spared["params"]}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {n for n, p in model.named_parameters() if p.dim() == 1} <= free
    assert all("norm" in n or "ln_f" in n or "bias" in n or n.endswith(("A_log", ".D")) for n in free)
