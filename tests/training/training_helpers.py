"""A tiny run that trains in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jrt_eval.settings import build
from jrt_eval.training.config import Config

MODELS: dict[str, dict[str, Any]] = {
    "mamba": {
        "d_model": 16,
        "n_layer": 2,
        "vocab_size": 250,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": {"d_state": 4},
        "rms_norm": True,
        "residual_in_fp32": True,
    }
}
for _name, _linear in {
    "jrt": {"_target_": "PrefixLinearAttention", "feature_dim": 4, "num_heads": 2, "enc_length": 16},
    "based": {"_target_": "LinearAttention", "feature_dim": 4, "num_heads": 2},
    "attn": None,
}.items():
    MODELS[_name] = {
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "n_inner": 32,
        "max_position_embeddings": 0,
        "vocab_size": 250,
        "pad_vocab_size_multiple": 8,
        "activation_function": "swiglu",
        "rms_norm": True,
        "residual_in_fp32": True,
        "rotary_emb_fraction": 1.0,
        "tie_word_embeddings": True,
        "special_initializer": True,
        "qkv_proj_bias": False,
        "out_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
    }
    if _linear is not None:
        MODELS[_name] |= {
            "mixer": {"_target_": "BaseConv"},
            "alt_mixer": _linear,
            "alt_mixer_layers": [1],
            "alt_mixer_2": {"_target_": "SlidingAttention", "window_size": 8, "num_heads": 2},
            "alt_mixer_2_layers": [2],
        }


def content(folder: Path, family: str = "based", **changes: Any) -> dict[str, Any]:
    """A configuration as a mapping: MQAR-like rows of 25 tokens over a vocabulary of 56, which the models' 256 rows hold."""
    rows = {"name": "mqar", "rows": 64, "options": {"length": 25, "pairs": 3, "vocabulary": 56}}
    objective: dict[str, Any] = {"kind": "ntp"}
    if family == "jrt":
        objective = {"kind": "jrt", "mask_token_id": 251, "boundary": True}
    return {
        "output": str(folder / "run"),
        "cache": str(folder / "tokens"),
        "model": MODELS[family],
        "data": {"lengths": [40], "synthetic": rows},
        "objective": objective,
        "optimizer": {"lr": 5e-3, "min_lr": 1e-4, "warmup": 0.1},
        "steps": 6,
        "batch_size": 8,
        "precision": "fp32",
        "backend": "parallel",
        "log_every": 1,
        "save_every": 3,
        "tensorboard": False,
        **changes,
    }


def tiny(folder: Path, family: str = "based", **changes: Any) -> Config:
    return build(Config, content(folder, family, **changes), "test")


def losses(config: Config) -> dict[int, str]:
    """step -> loss, as the CSV has it."""
    lines = (Path(config.output) / "metrics.csv").read_text().splitlines()[1:]
    return {int(line.split(",")[0]): line.split(",")[1] for line in lines}
