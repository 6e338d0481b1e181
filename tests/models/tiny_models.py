"""Tiny checkpoints of every family, made here with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from jrt_eval.models import from_config

PACKAGE = "based.models.mixers."


def released_config(family: str, **changes: Any) -> dict[str, Any]:
    """A released-form config of `family` (jrt, based, based_decay, attn), with keys changed or, by None, dropped."""
    config: dict[str, Any] = {
        "vocab_size": 251,
        "n_positions": 0,
        "n_embd": 48,
        "n_head": 4,
        "n_layer": 4,
        "n_inner": 64,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "rms_norm": True,
        "residual_in_fp32": True,
        "pad_vocab_size_multiple": 8,
        "special_initializer": True,
        "rotary_emb_fraction": 1,
        "max_position_embeddings": 0,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "out_proj_bias": False,
        "qkv_proj_bias": False,
    }
    if family == "attn":
        config["rotary_emb_fraction"] = 0.5
    else:
        config |= {
            "mixer": {"_target_": PACKAGE + "convolution.BaseConv", "expand_proj": 4, "kernel_sizes": 3},
            "alt_mixer_layers": [1],
            "alt_mixer_2_layers": [2],
            "alt_mixer_2": {
                "_target_": PACKAGE + "slide_attention.SlidingAttention",
                "window_size": 10,
                "num_heads": 4,
            },
        }
        linear = {"feature_dim": 6, "num_heads": 4}
        if family == "jrt":
            linear |= {"_target_": PACKAGE + "prefix_linear_attention.PrefixLinearAttention", "enc_length": 24}
        else:
            linear |= {"_target_": PACKAGE + "linear_attention.LinearAttention"}
        if family == "based_decay":
            linear["use_decay_proj"] = True
            config |= {"fixed_decay": True, "decay_const": -2}
        config["alt_mixer"] = linear
    for key, value in changes.items():
        config[key] = value
    return {k: v for k, v in config.items() if v is not None}


FAMILIES = ["jrt", "based", "based_decay", "attn"]


def tiny(family: str, **changes: Any) -> Any:
    """A model of `released_config` whose weights are large enough for its outputs to differ clearly."""
    model = from_config(released_config(family, **changes), seed=0, backend="torch").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(("norm1.weight", "norm2.weight", "ln_f.weight")):
                p.mul_(2)
    return model


def mamba_layout(folder: Path, version: int, vocab_size: int = 256) -> Any:
    """A tiny random transformers Mamba, written in the mamba_ssm layout; returns the transformers model."""
    from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

    torch.manual_seed(version)
    common = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": True}
    ssm: dict[str, Any] = {}
    if version == 1:
        model: Any = MambaForCausalLM(MambaConfig(**common, state_size=16))
    else:
        model = Mamba2ForCausalLM(
            Mamba2Config(**common, state_size=16, num_heads=4, head_dim=16, n_groups=1, chunk_size=16)
        )
        ssm = {"layer": "Mamba2", "headdim": 16, "d_state": 16, "chunk_size": 16}
    folder.mkdir(parents=True, exist_ok=True)
    state = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    config = {"d_model": 32, "n_layer": 2, "vocab_size": 251, "ssm_cfg": ssm, "rms_norm": True,
              "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return model.eval()


def byte_tokenizer(size: int = 251, end: int | None = None) -> Any:
    """A tokenizer of single characters: token i is the i-th of them; `end`: the id of the end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(0x100 + i): i for i in range(size)}
    special = {}
    if end is not None:
        vocabulary = {("<end>" if i == end else c): i for c, i in vocabulary.items()}
        special = {"eos_token": "<end>"}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0x100)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def spelled(tokens: list[int]) -> str:
    """The text that `byte_tokenizer` reads as `tokens`."""
    return "".join(chr(0x100 + t) for t in tokens)
