"""What the original implementation computes from the four golden checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance
from safetensors.torch import save_file
from tiny_models import byte_tokenizer, spelled

import jrt_eval

CHECKPOINTS = ["jrt", "based", "based_decay", "attn"]


@pytest.fixture(params=CHECKPOINTS)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, dict[str, Any]]:
    folder = shared / "golden" / "models" / request.param
    with np.load(folder / "golden.npz") as arrays:
        return folder, {name: torch.from_numpy(arrays[name]) for name in arrays}


def cases(arrays: dict[str, Any], kind: str) -> list[str]:
    return sorted(name.removesuffix("_ids") for name in arrays if name.startswith(kind) and name.endswith("_ids"))


def test_forward(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, arrays = golden
    model = jrt_eval.load_model(folder, device="cpu")
    for case in cases(arrays, "forward"):
        with torch.no_grad():
            logits = model(arrays[f"{case}_ids"]).logits
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, arrays[f"{case}_logits"], rtol=0, atol=2e-5)


def test_generate(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, arrays = golden
    model: Any = jrt_eval.load_model(folder, device="cpu")
    for case in cases(arrays, "generate"):
        ids, new = arrays[f"{case}_ids"], arrays[f"{case}_new"]
        out = model.generate(ids, max_new_tokens=new.shape[1], return_dict_in_generate=True, output_scores=True)
        assert torch.equal(out.sequences, torch.cat([ids, new], 1))
        torch.testing.assert_close(torch.stack(out.scores, 1), arrays[f"{case}_scores"], rtol=0, atol=1e-4)


def test_generate_until(golden: tuple[Path, dict[str, Any]]) -> None:
    """Through the adapter: prompts of all golden lengths in one batch."""
    folder, arrays = golden
    lm = JRTLM(str(folder), tokenizer=byte_tokenizer(256), device="cpu", batch_size=8)
    asked, expected = [], []
    for case in cases(arrays, "generate"):
        for ids, new in zip(arrays[f"{case}_ids"].tolist(), arrays[f"{case}_new"].tolist(), strict=True):
            asked.append(Instance("generate_until", {}, (spelled(ids), {"max_gen_toks": len(new), "until": []}), 0))
            expected.append(spelled(new))
    assert lm.generate_until(asked, disable_tqdm=True) == expected


@pytest.mark.parametrize("form", ["safetensors", "sharded bin", "sharded safetensors", "old names", "no prefix"])
def test_file_forms(shared: Path, tmp_path: Path, form: str) -> None:
    """The same logits from every form that a checkpoint may have on disk."""
    folder = shared / "golden" / "models" / "jrt"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    if form == "no prefix":
        tensors = {k.removeprefix("model."): v for k, v in tensors.items()}
    if form == "old names":
        tensors = {k.replace(".mixer.conv.", ".mixer.conv1."): v for k, v in tensors.items()}
    if "safetensors" in form:
        tensors = {k: v.clone() for k, v in tensors.items() if "lm_head" not in k}
    if form.startswith("sharded"):
        extension = "safetensors" if "safetensors" in form else "bin"
        stem = "model" if extension == "safetensors" else "pytorch_model"
        names, where = sorted(tensors), {}
        for i in range(3):
            shard = f"{stem}-{i + 1:05}-of-00003.{extension}"
            part = {name: tensors[name] for name in names[i::3]}
            where |= dict.fromkeys(part, shard)
            save_file(part, str(tmp_path / shard)) if extension == "safetensors" else torch.save(part, tmp_path / shard)
        (tmp_path / f"{stem}.{extension}.index.json").write_text(json.dumps({"weight_map": where}))
    elif form == "safetensors":
        save_file(tensors, str(tmp_path / "model.safetensors"))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = jrt_eval.load_model(folder, device="cpu")(ids).logits
        assert torch.equal(jrt_eval.load_model(tmp_path, device="cpu")(ids).logits, expected)
