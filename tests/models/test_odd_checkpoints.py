"""Checkpoints of many shapes, written by their key names and computed in NumPy float64, against what we load.

JRT_EVAL_DRAWN=200 tries more random configs than the suite does.
"""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_forward import Arrays, forward, weights

import jrt_eval
from jrt_eval.errors import UserError

P = "based.models.mixers."
BARE = {"mlp_fc1_bias": False, "mlp_fc2_bias": False, "out_proj_bias": False, "qkv_proj_bias": False}
RELEASE: dict[str, Any] = {
    "vocab_size": 233, "n_positions": 0, "max_position_embeddings": 0, "n_embd": 40, "n_head": 5, "n_layer": 5, "n_inner": 24,
    "activation_function": "swiglu", "rms_norm": True, "residual_in_fp32": True, "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5, "rotary_emb_fraction": 1, "pad_vocab_size_multiple": 8, **BARE,
}  # fmt: skip


def conv(**options: Any) -> dict[str, Any]:
    return {"_target_": P + "convolution.BaseConv", "expand_proj": 4, **options}


def linear(**options: Any) -> dict[str, Any]:
    return {"_target_": P + "linear_attention.LinearAttention", **options}


def prefix(**options: Any) -> dict[str, Any]:
    return {"_target_": P + "prefix_linear_attention.PrefixLinearAttention", **options}


def window(size: int, **options: Any) -> dict[str, Any]:
    return {"_target_": P + "slide_attention.SlidingAttention", "window_size": size, **options}


ODD: dict[str, dict[str, Any]] = {
    "jrt, both lists name a layer": {
        "mixer": conv(), "alt_mixer": prefix(feature_dim=3, enc_length=7), "alt_mixer_layers": [0, 3, 99],
        "alt_mixer_2": window(3), "alt_mixer_2_layers": [3, 4], "rotary_emb_fraction": 0.5, "pad_vocab_size_multiple": 16,
    },
    "jrt, layer norm, biases, gelu, untied": {
        "mixer": window(1), "alt_mixer": prefix(num_heads=2, feature_dim=5, dec_length=3), "alt_mixer_layers": [0, 1],
        "enc_length": 1, "rms_norm": False, "activation_function": "gelu", "tie_word_embeddings": False,
        "pad_vocab_size_multiple": 1, **dict.fromkeys(BARE, True),
    },
    "jrt, encoder longer than any prompt, one head": {
        "n_head": 1, "n_layer": 2, "mixer": prefix(feature_dim=1, enc_length=64), "layer_norm_epsilon": 1e-3,
    },
    "jrt, pads are not masked, attention between": {
        "mixer": prefix(feature_dim=16, enc_length=20, use_mask=False), "alt_mixer_layers": [1, 4], "rotary_emb_fraction": 0,
    },
    "jrt, convolutions seldom, window by another name": {
        "mixer": {"_target_": "train.SlidingsMHA", "window_size": 8}, "alt_mixer": prefix(feature_dim=7, enc_length=13, num_heads=4),
        "alt_mixer_layers": [2], "alt_mixer_2": {"_target_": "x.BaseConvWithSiLU4", "expand_proj": 2, "kernel_size": 7},
        "alt_mixer_2_layers": [0, 4], "activation_function": "geglu", "residual_in_fp32": False,
    },
    "based, wide kernels, no biases": {
        "mixer": conv(kernel_size=4, expand_proj=2, use_bias=False), "alt_mixer": linear(feature_dim=24), "alt_mixer_layers": [1],
        "alt_mixer_2": window(9), "alt_mixer_2_layers": [2], "rotary_emb_fraction": 0.3, "conv_bias": True,
    },
    "based, narrow kernels, feature map by class": {
        "mixer": conv(kernel_size=1, expand_proj=3), "alt_mixer_layers": [0, 1, 2],
        "alt_mixer": linear(feature_dim=6, num_heads=8, feature_map={"_target_": "y.TaylorExp", "input_dim": 6}),
        "activation_function": "glu", "qkv_proj_bias": True,
    },
    "based, value dim of its own": {
        "mixer": linear(num_heads=3, head_dim=11, feature_dim=4), "n_layer": 2, "mlp_fc2_bias": True,
    },
    "based, heads of its own": {
        "n_head": 7, "head_dim": None, "mixer": conv(expand_proj=2), "alt_mixer": linear(num_heads=4, feature_dim=2), "alt_mixer_layers": [0, 2],
    },
    "based, decay everywhere": {
        "mixer": linear(feature_dim=8, use_decay_proj=True), "fixed_decay": True, "decay_const": -1, "n_layer": 3,
    },
    "based, slow decay beside plain layers": {
        "mixer": linear(feature_dim=4), "alt_mixer": linear(feature_dim=9, use_decay_proj=True), "alt_mixer_layers": [1, 3],
        "fixed_decay": True, "decay_const": -5,
    },
    "attention, odd rotary": {"n_embd": 42, "n_head": 3, "rotary_emb_fraction": 0.5, "n_inner": None, "pad_vocab_size_multiple": 64},
    "attention, another base": {"rotary_emb_base": 500.0, "rotary_emb_fraction": 0.75, "activation_function": "sqrelu"},
    "attention, one layer, one head, untied": {"n_layer": 1, "n_head": 1, "n_embd": 16, "tie_word_embeddings": False, "lm_head_bias": True},
    "attention as GPT-2 has it": {
        "rms_norm": None, "activation_function": "gelu_new", "rotary_emb_fraction": 0, "max_position_embeddings": 50,
        **dict.fromkeys(BARE),
    },
}  # fmt: skip


def drawn(seed: int) -> dict[str, Any]:
    """A config of random shapes and mixers."""
    pick = random.Random(seed)
    heads, n_layer = pick.choice([1, 2, 3, 4]), pick.randint(1, 5)
    d = heads * pick.choice([4, 6, 10, 14])
    decayed = pick.random() < 0.3

    def mixer() -> dict[str, Any] | None:
        h = pick.choice([n for n in (1, 2, 3, 4) if d % n == 0])
        f = pick.choice([1, 2, 5, 8, 11])
        return pick.choice([
            None,
            conv(kernel_size=pick.randint(1, 6), expand_proj=pick.choice([2, 4]), use_bias=pick.random() < 0.7),
            window(pick.randint(1, 20)),
            linear(feature_dim=f, num_heads=heads if decayed else h, use_decay_proj=decayed),
            prefix(feature_dim=f, num_heads=h),
        ])  # fmt: skip

    config = RELEASE | {
        "vocab_size": pick.randint(221, 300), "pad_vocab_size_multiple": pick.choice([1, 3, 8, 16]), "n_embd": d, "n_head": heads,
        "n_layer": n_layer, "activation_function": pick.choice(["swiglu", "swiglu", "geglu", "glu", "gelu", "gelu_new", "relu"]),
        "rms_norm": pick.random() < 0.7, "tie_word_embeddings": pick.random() < 0.7, "enc_length": pick.choice([1, 5, 16, 33]),
        "layer_norm_epsilon": pick.choice([1e-5, 1e-2]), "rotary_emb_fraction": pick.choice([0, 0.25, 0.5, 0.8]),
        "fixed_decay": decayed, "decay_const": -pick.randint(1, 5), "conv_bias": pick.random() < 0.3,
        "alt_mixer_layers": pick.sample(range(6), 3), "alt_mixer_2_layers": pick.sample(range(6), 2),
        **{key: pick.random() < 0.3 for key in BARE},
    }  # fmt: skip
    return config | {tag: made for tag in ("mixer", "alt_mixer", "alt_mixer_2") if (made := mixer()) is not None}


DRAWN = int(os.environ.get("JRT_EVAL_DRAWN", "6"))
CASES = ODD | {f"drawn {seed}": drawn(seed) for seed in range(DRAWN)}


def write(folder: Path, case: str) -> tuple[dict[str, Any], Arrays]:
    """A checkpoint of the case on disk, every other one under old names; its config and tensors."""
    config = {key: value for key, value in (RELEASE | CASES[case]).items() if value is not None}
    rng = np.random.default_rng(len(case))
    inner = config.get("n_inner") or math.ceil(8 * config["n_embd"] / 3)
    conv_bias = config.pop("conv_bias", False)
    tensors = weights(config, rng, inner, conv_bias)
    old = len(case) % 2 == 0
    saved: dict[str, Any] = {
        ("model." if old else "") + (key.replace(".conv.conv.", ".conv1.conv.") if old else key): torch.from_numpy(
            value
        )
        for key, value in tensors.items()
    }
    saved["train_metrics.num-tokens.count"] = torch.tensor(7)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(saved, folder / "pytorch_model.bin")
    return config, tensors


@pytest.mark.parametrize("case", CASES)
def test_logits(tmp_path: Path, case: str) -> None:
    """Whole sequences shorter, as long and longer than encoder and window; padded batches; kernels and reference."""
    config, tensors = write(tmp_path, case)
    draw = random.Random(case)
    sequences = [[draw.randrange(config["vocab_size"]) for _ in range(n)] for n in (1, 6, 23, 40)]
    expected = [forward(config, tensors, ids) for ids in sequences]
    assert expected[-1].std() > 0.1
    ids, lengths = torch.zeros(4, 40, dtype=torch.int64), torch.tensor([1, 6, 23, 40])
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    for backend in ("torch", "auto"):
        model = jrt_eval.load_model(tmp_path, device="cpu", backend=backend)
        with torch.no_grad():
            for got in (model(ids, lengths=lengths).logits, model(ids[3:]).logits):
                for row, want in zip(reversed(got), reversed(expected), strict=False):
                    np.testing.assert_allclose(row[: len(want)].double().numpy(), want, rtol=0, atol=3e-5)


@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations(tmp_path: Path, case: str) -> None:
    """Scores before each new token, recomputed over the whole (padded) sequence each time."""
    config, tensors = write(tmp_path, case)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    draw = random.Random(case)
    prompts = [[draw.randrange(config["vocab_size"]) for _ in range(n)] for n in (2, 17, 36)]
    out = model.generate(prompts, max_new_tokens=5, return_dict_in_generate=True, output_scores=True)
    for row, prompt in enumerate(prompts):
        pads = max(0, model.enc_length - len(prompt))
        tokens = [220] * pads + prompt
        for step, scores in enumerate(out.scores):
            want = forward(config, tensors, tokens, pads)[-1]
            np.testing.assert_allclose(scores[row].double().numpy(), want, rtol=0, atol=1e-4)
            tokens.append(out.tokens[row][step])
            assert want[tokens[-1]] > want.max() - 1e-4


@pytest.mark.parametrize("case", CASES)
def test_every_key_and_shape_is_checked(tmp_path: Path, case: str) -> None:
    """Each tensor of the file in turn missing, misshapen, and one more than the config knows."""
    config, tensors = write(tmp_path, case)
    path = tmp_path / "pytorch_model.bin"
    shaped = {
        name: value for name, value in tensors.items() if name not in ("lm_head.weight", "transformer.decay.decay")
    }

    def refusal(changed: Arrays) -> str:
        torch.save({name: torch.from_numpy(value) for name, value in changed.items()}, path)
        with pytest.raises(UserError) as raised:
            jrt_eval.load_model(tmp_path, device="cpu")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    tied = config.get("tie_word_embeddings", True)
    for name in random.Random(case).sample(sorted(shaped), 6):
        if tied and name.endswith("word_embeddings.weight"):  # the head's tensor serves for both
            continue
        without = {key: value for key, value in tensors.items() if key != name}
        assert name in refusal(without)
        wider = np.concatenate([tensors[name], tensors[name][..., :1]], -1)
        assert name in refusal(without | {name: wider})
    assert "unexpected transformer.layers.0.mixer.gate" in refusal(
        tensors | {"transformer.layers.0.mixer.gate": np.ones(3, np.float32)}
    )


def test_expansion_comes_from_the_file(tmp_path: Path) -> None:
    """A convolution whose config has no expand_proj."""
    write(tmp_path, "based, wide kernels, no biases")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        whole = jrt_eval.load_model(tmp_path, device="cpu")(ids).logits
        config = json.loads((tmp_path / "config.json").read_text())
        del config["mixer"]["expand_proj"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert torch.equal(jrt_eval.load_model(tmp_path, device="cpu")(ids).logits, whole)


def test_no_position_beyond_the_table(tmp_path: Path) -> None:
    write(tmp_path, "attention as GPT-2 has it")
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    with pytest.raises(UserError, match="a sequence of 51 tokens is longer than its 50 position embeddings"):
        model(torch.zeros(1, 51, dtype=torch.int64))


def test_padding_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    config = RELEASE | {"vocab_size": 60, "mixer": prefix(feature_dim=2, enc_length=9)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = weights(config, np.random.default_rng(0), 24)
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    with pytest.raises(UserError, match="padded with token 220, its vocabulary has 64 rows"):
        model.generate([[1, 2]])
    assert model.generate([[1, 2]], max_new_tokens=3, short_prompt="iterate").shape == (1, 5)
