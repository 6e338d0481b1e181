"""Mamba in the mamba_ssm layout, transformers' own models, and what fla's need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import mamba_layout

import jrt_eval
from jrt_eval.errors import UserError


def llama(folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("version", [1, 2])
def test_mamba_layout(tmp_path: Path, version: int) -> None:
    original = mamba_layout(tmp_path, version)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu", cpu_linear="torch")
    assert model.family == ("mamba" if version == 1 else "mamba2")
    ids = torch.randint(0, 251, (2, 45))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=1e-4)
    state = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in original.state_dict().items()}
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_arch_overrides_the_config(tmp_path: Path) -> None:
    """A Mamba-2 whose config does not say so."""
    original = mamba_layout(tmp_path, 2)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ssm_cfg"]["layer"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="headdim"):
        jrt_eval.load_model(tmp_path, device="cpu")
    model: Any = jrt_eval.load_model(tmp_path, device="cpu", arch="mamba2")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_mamba_prefill_and_steps(tmp_path: Path, version: int) -> None:
    """Greedy continuation through the recurrent form is that of recomputing the whole sequence."""
    mamba_layout(tmp_path, version)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    prompt = torch.randint(0, 251, (1, 19)).tolist()
    new = model.continue_prompts(prompt, 8, sampling={}, stop_ids=[])[0]
    ids = prompt[0]
    for token in new:
        with torch.no_grad():
            assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids = [*ids, token]


@pytest.mark.parametrize(
    ("ssm", "top", "says"),
    [
        ({"layer": "Mamba3"}, {}, "Mamba3"),
        ({"d_inner_gate": 1}, {}, "d_inner_gate"),
        ({"layer": "Mamba2", "headdim": 16, "rmsnorm": "no"}, {}, "rmsnorm"),
        ({}, {"attn_layer_idx": [2]}, "attn_layer_idx"),
        ({}, {"rms_norm": "yes"}, "rms_norm"),
        ({}, {"d_model": "wide"}, "d_model"),
        ({"layer": "Mamba2", "headdim": 48}, {}, "headdim"),
        ({"d_state": 8}, {}, "mixer.A_log has shape"),
    ],
)
def test_mamba_that_is_not_known(tmp_path: Path, ssm: dict[str, Any], top: dict[str, Any], says: str) -> None:
    mamba_layout(tmp_path, 1)
    config = json.loads((tmp_path / "config.json").read_text()) | {"ssm_cfg": ssm} | top
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        jrt_eval.load_model(tmp_path, device="cpu")


def test_any_transformers_model(tmp_path: Path) -> None:
    original = llama(tmp_path)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    ids = torch.randint(0, 251, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert model.state_size(100) == 100 * 2 * 2 * 32 * 4
    out = model.generate(ids, max_new_tokens=4)
    assert torch.equal(
        out, original.generate(ids, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
    )


def test_transformers_model_with_missing_weights(tmp_path: Path) -> None:
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    llama(tmp_path)
    path = str(tmp_path / "model.safetensors")
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        jrt_eval.load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("truncated", "is truncated"),
        ("pickle", "holds more than tensors"),
        ("whole", "model.norm.weight is int64, floating point was expected"),
        ("float8", "is float8_e4m3fn; weights are needed as"),
        ("shape", r"model.norm.weight has shape \(7,\), expected \(32,\)"),
        ("none", "has no weights"),
    ],
)
def test_transformers_weights_that_cannot_be_meant(tmp_path: Path, form: str, says: str) -> None:
    tensors = llama(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    path, norm = tmp_path / "pytorch_model.bin", tensors["model.norm.weight"]
    changed: dict[str, Any] = {
        "pickle": torch.nn.Linear(2, 2),
        "whole": norm.long(),
        "float8": norm.to(torch.float8_e4m3fn),
        "shape": norm[:7],
    }
    if form != "none":
        torch.save({**tensors, "model.norm.weight": changed.get(form, norm)}, path)
    if form == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=says) as raised:
        jrt_eval.load_model(tmp_path, device="cpu")
    assert "\n" not in str(raised.value)


def test_code_in_a_repository_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}}
        )
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(UserError, match="trust_remote_code"):
        jrt_eval.load_model(tmp_path, device="cpu")
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_fla_models_say_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hgrn2", "hidden_size": 8}))
    with pytest.raises(UserError, match=r"hgrn2 models .* need a GPU"):
        jrt_eval.load_model(tmp_path, device="cpu")
