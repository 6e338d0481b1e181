"""Reading a released config.json: which mixer a layer has, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import FAMILIES, released_config

from jrt_eval.errors import UserError
from jrt_eval.models import from_config
from jrt_eval.models.checkpoints import family_of
from jrt_eval.models.recurrent.config import parse_config

P = "based.models.mixers."
JRT = {"alt_mixer_layers": [1, 6, 11, 16, 21], "alt_mixer_2_layers": [2, 7, 12, 17, 22], "enc_length": 1024}


def released(size: str) -> dict[str, Any]:
    """The shapes of the released checkpoints, as spec/models.md lists them."""
    family, _, scale = size.partition("-")
    big = scale == "1b"
    config = released_config(family, vocab_size=50257)
    layers = [1, 6, 11, 16, 21, 27, 33] if big else [1, 6, 11, 16, 21]
    if family == "attn":
        shape = {"n_embd": 1680, "n_head": 24, "n_layer": 36} if big else {"n_embd": 1024, "n_head": 16, "n_layer": 24}
        config |= shape | {"pad_vocab_size_multiple": 16}
        del config["n_inner"]
        return config
    config |= {"n_embd": 1792 if big else 1024, "n_inner": 3584 if big else 2048, "n_head": 16}
    config |= {"n_layer": 36 if big else 26 if family == "jrt" else 27, "alt_mixer_layers": layers}
    config |= {"alt_mixer_2_layers": [i + 1 for i in layers]}
    config["alt_mixer"] |= {"feature_dim": 16, "num_heads": 16}
    config["alt_mixer_2"] |= {"num_heads": 16, "window_size": 256}
    if family == "jrt":
        config["alt_mixer"]["enc_length"] = 1024
    return config


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("jrt-1b", 1_375_143_168),
        ("jrt-360m", 356_578_304),
        ("based-1b", 1_349_453_056),
        ("based-360m", 362_620_928),
        ("attn-1b", 1_303_856_400),
        ("attn-360m", 359_810_048),
    ],
)
def test_parameter_counts_of_the_release(size: str, parameters: int) -> None:
    """The files' own sizes: every shape follows from the config."""
    assert from_config(released(size), device="meta").num_parameters() == parameters


def test_targets_by_their_last_component() -> None:
    for path, kind in [
        ("a.b.BaseConvWithSiLU4", "convolution"),
        ("BaseConv", "convolution"),
        ("train.src.LinearAttention", "linear_attention"),
        ("x.SlidingsMHA", "sliding_window"),
        ("flash_attn.modules.mha.MHA", "attention"),
    ]:
        mixer = {"_target_": path} | ({"window_size": 9} if kind == "sliding_window" else {})
        config = parse_config(released_config("attn", mixer=mixer))
        assert {m.kind for m in config.mixers} == {kind}


def test_second_alternative_wins() -> None:
    config = parse_config(released_config("jrt", alt_mixer_layers=[1, 2], alt_mixer_2_layers=[2]))
    assert [m.kind for m in config.mixers] == [
        "convolution",
        "prefix_linear_attention",
        "sliding_window",
        "convolution",
    ]


def test_no_mixer_is_softmax_attention() -> None:
    config = parse_config(released_config("jrt", alt_mixer=None))
    assert config.mixers[1].kind == "attention"


@pytest.mark.parametrize(("window_size", "seen"), [(256, 129), (16, 9), (15, 8), (1, 1)])
def test_window_is_half_of_window_size_and_the_token_itself(window_size: int, seen: int) -> None:
    slide = {"_target_": "x.SlidingAttention", "window_size": window_size}
    assert parse_config(released_config("attn", mixer=slide)).mixers[0].window == seen


def test_options_that_choose_an_implementation_change_nothing() -> None:
    plain = released_config("jrt")
    noisy = released_config("jrt", use_flash_attn=True, fused_mlp=False, fused_bias_fc=True)
    noisy["alt_mixer"] |= {"implementation": "fla_parallel", "train_view": "linear", "num_key_value_heads": 4,
                           "feature_name": "taylor_exp", "l_max": 99, "do_update": True}  # fmt: skip
    noisy["mixer"] |= {"use_cuda": True, "fused_whatever": 1}
    assert parse_config(plain).mixers == parse_config(noisy).mixers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activation_function": "swigelu"}, "did you mean 'swiglu'"),
        ({"activation_function": "tanh"}, "activation_function"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"n_embd": 28, "rotary_emb_fraction": 1}, "odd"),
        ({"mixer": {"_target_": "os.system"}}, "os.system"),
        ({"mixer": {"_target_": "subprocess.Popen", "args": ["touch", "owned"]}}, "subprocess.Popen"),
        ({"mixer": {"_target_": "x.BaseConf"}}, "did you mean 'BaseConv'"),
        ({"mixer": "BaseConv"}, "_target_"),
        ({"mixer": {"_target_": "x.BaseConv", "gated": True}}, "gated"),
        ({"mixer": {"_target_": "x.SlidingAttention"}}, "window_size"),
        ({"mixer": {"_target_": "x.SlidingAttention", "window_size": 8, "causal": False}}, "causal"),
        ({"mixer": {"_target_": "x.LinearAttention", "num_key_value_heads": 2}}, "num_key_value_heads"),
        ({"mixer": {"_target_": "x.LinearAttention", "feature_name": "elu"}}, "elu"),
        ({"mixer": {"_target_": "x.LinearAttention", "feature_map": {"_target_": "y.Hedgehog"}}}, "Hedgehog"),
        ({"mixer": {"_target_": "x.LinearAttention", "use_decay_proj": True}}, "fixed_decay"),
        ({"mixer": {"_target_": "x.LinearAttention", "eps": 1e-3}}, "eps"),
        (
            {"fixed_decay": True, "mixer": {"_target_": "x.LinearAttention", "use_decay_proj": True, "num_heads": 2}},
            "n_head",
        ),
        ({"decay_denom": True}, "decay_denom"),
        ({"mixer": {"_target_": "x.PrefixLinearAttention"}}, "enc_length"),
        ({"mixer": {"_target_": "x.PrefixLinearAttention", "enc_length": 4, "head_dim": 5}}, "head_dim"),
        ({"n_embd": 50}, "n_head"),
        ({"n_layer": "four"}, "n_layer"),
        ({"n_embd": None}, "lacks n_embd"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"alt_mixer_layers": "all"}, "alt_mixer_layers"),
        ({"rotary_emb_fraction": 2}, "rotary_emb_fraction"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        parse_config(released_config("attn", **changes), "some/config.json")
    assert "\n" not in str(raised.value)
    assert "some/config.json" in str(raised.value)


def test_family_follows_from_the_config() -> None:
    for family in FAMILIES:
        assert family_of(released_config(family)) == "jrt"
        assert family_of(released_config(family) | {"model_type": "gpt2"}) == "jrt"
    mamba = {"d_model": 8, "n_layer": 2, "vocab_size": 9, "ssm_cfg": {}}
    assert family_of(mamba) == "mamba"
    assert family_of(mamba | {"n_embd": 8, "n_head": 2, "model_type": "gpt2", "rms_norm": True}) == "mamba"
    assert family_of({"model_type": "mamba", "hidden_size": 8, "d_model": 8, "n_layer": 2}) == "mamba"
    assert family_of({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}) == "transformers"
    assert family_of({"model_type": "llama"}) == "transformers"
    assert family_of({"model_type": "gla"}) == "fla"
    assert family_of({"model_type": "llama"}, arch="mamba2") == "mamba"
    with pytest.raises(UserError, match="did you mean 'mamba'"):
        family_of({}, arch="mambo")
