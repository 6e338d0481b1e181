"""The model configs that benchmarks measure: the released shapes, from the training configs in configs/paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.settings import read_settings

# Layers with linear attention and with a sliding window: `keys` of a config that list layer numbers.
_LAYER_LISTS = ("alt_mixer_layers", "alt_mixer_2_layers")


def _folder() -> Path:
    """configs/paper: inside the installed package, or at the root of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / "paper"
    return installed if installed.is_dir() else package.parent / "configs" / "paper"


def released_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """The model config of a released checkpoint, in the form of its config.json.

    name: `jrt-360m`, `based-360m`, `attn-360m`, `mamba-360m` or the same with `-1b`; `mamba2` with either size is Mamba's
        config with Mamba-2's mixer.
    layers: keep only the first so many layers.
    """
    files = {path.stem: path for path in _folder().glob("*.yaml")}
    known = sorted([*files, *(stem.replace("mamba-", "mamba2-") for stem in files if stem.startswith("mamba-"))])
    if name not in known:
        raise UserError(f"no model config {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    config: dict[str, Any] = read_settings(files[name.replace("mamba2-", "mamba-")])["model"]
    if name.startswith("mamba2-"):
        config["ssm_cfg"] = {"layer": "Mamba2"}
    if layers is not None:
        config["n_layer"] = min(layers, config["n_layer"])
        for key in _LAYER_LISTS:
            if key in config:
                config[key] = [layer for layer in config[key] if layer < layers]
    return config


def tiny_config() -> dict[str, Any]:
    """A JRT-RNN with the mixers of `jrt-360m`, small enough to try a benchmark out on a CPU."""
    config = released_config("jrt-360m", layers=3)
    config |= {"n_embd": 64, "n_head": 4, "n_inner": 128}
    config["alt_mixer"] |= {"num_heads": 4, "enc_length": 64}
    config["alt_mixer_2"] |= {"num_heads": 4}
    return config


# As many parameters as attn-360M and JRT-1B-50B, in transformers' Llama.
_LLAMA = {
    "360m": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1b": {"hidden_size": 2048, "intermediate_size": 5888, "num_hidden_layers": 24, "num_attention_heads": 16},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
}


def llama_config(size: str) -> Any:
    """A transformers LlamaConfig of size `360m`, `1b` or `tiny`, for GPT-2's tokens."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=50264,
        tie_word_embeddings=True,
        max_position_embeddings=16384,
        bos_token_id=50256,
        eos_token_id=50256,
        **_LLAMA[size],
    )
