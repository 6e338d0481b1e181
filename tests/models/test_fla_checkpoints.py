"""flash-linear-attention's checkpoints in our own model class: its own logits, and configs that it allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import jrt_eval
from jrt_eval.errors import UserError
from jrt_eval.models import checkpoints, save_pretrained
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.recurrent.fla import TYPES, parse_fla_config
from jrt_eval.models.recurrent.graphs import Graphs
from jrt_eval.models.recurrent.model import JRTModel
from jrt_eval.models.weights import read_weights

BASE: dict[str, dict[str, Any]] = {
    "gla": {"num_heads": 2, "expand_k": 0.5, "expand_v": 1.0},
    "retnet": {"num_heads": 2},
    "delta_net": {"num_heads": 2},
    "gated_deltanet": {"num_heads": 2, "head_dim": 12},
    "kda": {"num_heads": 2, "head_dim": 12},
}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("gla", {"num_heads": 4, "num_kv_heads": 2, "clamp_min": -0.01, "feature_map": "relu"}),
    ("gla", {"use_short_conv": True, "conv_size": 3, "use_output_gate": False, "elementwise_affine": False}),
    ("retnet", {"num_heads": 4, "num_kv_heads": 1, "use_short_conv": True, "feature_map": "swish"}),
    ("delta_net", {"use_gate": True, "qk_activation": "elu", "qk_norm": "sum", "use_short_conv": False}),
    ("delta_net", {"use_beta": False, "allow_neg_eigval": True, "qk_activation": "relu", "conv_size": 2}),
    ("gated_deltanet", {"num_v_heads": 4, "use_gate": False, "expand_v": 0.5, "allow_neg_eigval": True}),
    ("gated_deltanet", {"output_gate_activation": "sigmoid"}),
    ("gla", {"attn": [{"layers": [0], "num_heads": 2}, {"layers": [0, 1], "num_heads": 4, "window_size": 3}]}),
    ("gated_deltanet", {"use_short_conv": False, "tie_word_embeddings": True}),
    ("kda", {"num_v_heads": 6, "expand_v": 1.5, "lower_bound": -5.0, "safe_gate": True}),
    ("gla", {"attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True}}),
    ("kda", {"attn": {"layers": [0], "num_heads": 2, "window_size": 5, "rope_theta": 500.0}}),
]


def config(kind: str, **changes: Any) -> dict[str, Any]:
    sizes = {"model_type": kind, "hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 61, "intermediate_size": 40}
    return {**sizes, **BASE[kind], **changes}


def random_model(raw: dict[str, Any]) -> JRTModel:
    torch.manual_seed(3)
    model = JRTModel(parse_fla_config(raw), raw).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 1)
    return model


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_logits_of_fla(kind: str, shared: Path) -> None:
    folder = shared / "golden" / "models" / kind
    model = jrt_eval.load_model(folder, device="cpu")
    assert model.family == kind
    with np.load(folder / "golden.npz") as arrays:
        for name in [n for n in arrays if n.endswith("_ids")]:
            ids, want = torch.from_numpy(arrays[name]), torch.from_numpy(arrays[name.replace("_ids", "_logits")])
            with torch.no_grad():
                torch.testing.assert_close(model(ids).logits, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("kind", "changes"), CHANGES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_splits_steps_and_padding_agree(kind: str, changes: dict[str, Any]) -> None:
    """What a config switches on is a function of the state: whole, in pieces, token by token, and padded."""
    model = random_model(config(kind, **changes))
    ids = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits
        assert whole.std() > 0.1
        first = model(ids[:, :9])
        second = model(ids[:, 9:15], state=first.state)
        steps = [model.step(ids[:, t], second.state) for t in range(15, 23)]
        pieces = torch.cat([first.logits, second.logits, torch.stack(steps, 1)], 1)
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
        padded = model(torch.cat([ids[:1], ids[1:].roll(5)]), lengths=torch.tensor([11, 23]))
        torch.testing.assert_close(padded.logits[0, :11], whole[0, :11], rtol=1e-4, atol=1e-4)
        follow = model.step(ids[:, 11], padded.state)
        torch.testing.assert_close(follow[0], whole[0, 11], rtol=1e-4, atol=1e-4)


def save_in_flas_layout(model: JRTModel, raw: dict[str, Any], folder: Path, *, old_mlp: bool = False) -> None:
    """Write a model without softmax layers under fla's names; old_mlp: gate and values in one tensor."""
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("transformer.").replace("embeddings.word_embeddings", "embeddings")
        name = name.replace(".mixer.o_norm", ".attn.g_norm_swish_gate").replace(".mixer.", ".attn.")
        name = name.replace("norm1", "attn_norm").replace("norm2", "mlp_norm").replace("ln_f", "norm")
        name = name.replace("fc2", "down_proj")
        name = name if name.startswith("lm_head") else f"model.{name}"
        if "fc1" in name:
            values, gate = value.chunk(2)
            tensors[name.replace("fc1", "gate_proj")] = torch.cat([gate, values]) if old_mlp else gate.clone()
            if not old_mlp:
                tensors[name.replace("fc1", "up_proj")] = values.clone()
        else:
            tensors[name] = value.contiguous()
    save_file(tensors, str(folder / "model.safetensors"))


def test_an_older_file_with_gate_and_values_in_one_tensor(tmp_path: Path) -> None:
    raw = config("gla")
    model = random_model(raw)
    save_in_flas_layout(model, raw, tmp_path, old_mlp=True)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(jrt_eval.load_model(tmp_path, device="cpu")(ids).logits, model(ids).logits)


def test_a_retnet_whose_config_asks_for_convolutions_that_fla_does_not_build(tmp_path: Path) -> None:
    model = random_model(config("retnet"))
    save_in_flas_layout(model, config("retnet", use_short_conv=True), tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(jrt_eval.load_model(tmp_path, device="cpu")(ids).logits, model(ids).logits)


def test_the_sum_norm_divides_by_absolute_values() -> None:
    """fla's `sum_norm` is F.normalize(x, p=1); features of silu and identity have both signs."""
    model: Any = random_model(config("delta_net", qk_norm="sum", qk_activation="identity"))
    features = model.transformer.layers[0].mixer._features(torch.tensor([[1.0, -3.0, 0.0, 4.0], [0.0] * 4]))
    torch.testing.assert_close(features, torch.tensor([[0.125, -0.375, 0.0, 0.5], [0.0] * 4]))


def test_sizes_that_a_config_gives_as_ratios() -> None:
    """100 * 0.29 is 28.999999999999996 in floating point; a null ratio of the MLP is 4 and not the type's default."""
    gla = parse_fla_config(config("gla", hidden_size=100, num_heads=1, expand_k=0.29, expand_v=0.5))
    assert (gla.mixers[0].key_dim, gla.mixers[0].head_dim) == (29, 50)
    inner = {
        ratio: parse_fla_config(config("retnet", hidden_size=1024, intermediate_size=None, **ratios)).inner()
        for ratio, ratios in {"default": {}, "null": {"hidden_ratio": None}, "2.5": {"hidden_ratio": 2.5}}.items()
    }
    assert inner == {"default": 1536, "null": 2816, "2.5": 1792}


def test_of_a_layer_in_several_entries_of_attn_the_first_counts() -> None:
    both = [{"layers": [0], "num_heads": 2}, {"layers": [0, 1], "num_heads": 4}]
    assert [m.num_heads for m in parse_fla_config(config("gla", attn=both)).mixers] == [2, 4]


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_recorded_step_decodes_what_a_step_decodes(kind: str) -> None:
    """The state has fixed addresses, so that CUDA graphs can record a step; here a function stands for the graph."""
    model = random_model(config(kind))
    with torch.no_grad():
        state = model(torch.arange(9)[None]).state
        assert state is not None
        step = Graphs(record=lambda run: run).step(model, state, 20)
        assert step is not None
        for token in (torch.tensor([5]), torch.tensor([7])):
            torch.testing.assert_close(step(token), model.step(token, state), rtol=0, atol=0)


@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize(("kind", "changes"), CHANGES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_a_model_is_saved_in_flas_form(kind: str, changes: dict[str, Any], safetensors: bool, tmp_path: Path) -> None:
    """Saved and read again, it computes the same, and saved again it is the same file."""
    model = random_model(config(kind, **changes))
    ids = torch.arange(10)[None]
    states = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        save_pretrained(model, folder, safetensors=safetensors)
        again: Any = jrt_eval.load_model(folder, device="cpu")
        with torch.no_grad():
            expected, got = model(ids).logits, again(ids).logits
        if folder.name == "second" or not (changes.get("attn") and "num_kv_heads" in changes["attn"]):
            assert torch.equal(got, expected)  # random heads that should share keys are unequal until they were saved
        states.append(read_weights(Checkpoint(folder)))
        model = again
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any("mixer" in key or "Wqkv" in key or "fc" in key for key in states[0])


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_saved_names_are_those_of_fla(kind: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "models" / kind
    model: Any = jrt_eval.load_model(folder, device="cpu")
    save_pretrained(model, tmp_path, safetensors=True)
    with safe_open(folder / "model.safetensors", "pt") as a, safe_open(tmp_path / "model.safetensors", "pt") as b:
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118


def test_flas_types_are_those_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("newest", "bitnet"):
        folder = tmp_path / "fla" / "models" / kind
        folder.mkdir(parents=True)
        (folder / f"configuration_{kind}.py").write_text(f"class C:\n    model_type = '{kind}'\n    keys = ['past']\n")
    (tmp_path / "fla" / "__init__.py").write_text("raise ImportError('is only read')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkpoints, "fla_types", checkpoints.fla_types.__wrapped__)  # without its cache
    families = {kind: checkpoints.family_of({"model_type": kind}) for kind in ("newest", "gla", "bitnet", "llama")}
    assert families == {"newest": "fla", "gla": "fla", "bitnet": "transformers", "llama": "transformers"}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gla", {"num_heads": 5}, r"expand_k 0\.5 times hidden_size 48 is 24, it must be a multiple of num_heads 5"),
        ("gla", {"expand_k": 0.7}, r"times hidden_size 48 is 33\.6"),
        ("retnet", {"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads 3 must divide num_heads 4"),
        ("gla", {"attn": [{"layers": [0], "num_heads": 2}, 5]}, "attn is 5"),
        ("gla", {"feature_map": "hedgehog"}, "feature_map is 'hedgehog'"),
        ("gla", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("retnet", {"attnres_block_size": 4}, "attnres_block_size is 4"),
        ("delta_net", {"qk_norm": "l1"}, "qk_norm is 'l1'"),
        ("gated_deltanet", {"num_v_heads": 3}, "num_v_heads is 3"),
        ("gated_deltanet", {"expand_v": 0.3}, "must be an integer"),
        ("kda", {"lower_bound": 1.0}, "lower_bound is 1.0"),
        ("kda", {"attn": {"layers": [7], "num_heads": 2}}, "attn.layers"),
        ("kda", {"attn": {"layers": [1], "num_heads": 7}}, "num_heads is 7"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_fla_config(config(kind, **changes))
