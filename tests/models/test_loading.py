"""Reading checkpoints: every key checked, nothing executed, one line for what is wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jrt_eval.model_adapters.jrt import JRTLM
from tiny_models import FAMILIES, byte_tokenizer, mamba_layout, released_config, tiny

import jrt_eval
from jrt_eval.errors import UserError
from jrt_eval.models import from_config, save_pretrained
from jrt_eval.models.tokenizers import load_tokenizer

Checkpoint = Callable[..., Path]


def refused(folder: Path | str, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        jrt_eval.load_model(folder, device="cpu", **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    edit(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("form", ["jrt", "mamba", "gla"])
def test_cuda_graphs_are_as_asked(
    checkpoint: Checkpoint, tmp_path: Path, request: pytest.FixtureRequest, form: str, cuda_graphs: bool
) -> None:
    if form == "gla":
        folder = request.getfixturevalue("shared") / "golden" / "models" / "gla"
    elif form == "mamba":
        folder = tmp_path / "mamba"
        mamba_layout(folder, 1)
    else:
        folder = checkpoint("jrt")
    assert jrt_eval.load_model(folder, device="cpu", cuda_graphs=cuda_graphs).cuda_graphs is cuda_graphs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("safetensors", [False, True], ids=["bin", "safetensors"])
def test_round_trip(checkpoint: Checkpoint, family: str, safetensors: bool) -> None:
    folder = checkpoint(family, safetensors=safetensors)
    loaded: Any = jrt_eval.load_model(folder, device="cpu", backend="torch")
    assert not loaded.training
    ids = torch.randint(0, 251, (2, 30))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tiny(family)(ids).logits)
    assert (loaded.lm_head.weight is loaded.transformer.embeddings.word_embeddings.weight) is True
    assert os.path.getsize(folder / ("model.safetensors" if safetensors else "pytorch_model.bin")) < 1.2 * 4 * (
        loaded.num_parameters() + 10_000
    )


def test_untied_head(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based", tie_word_embeddings=False)
    model: Any = jrt_eval.load_model(folder, device="cpu")
    assert model.lm_head.weight is not model.transformer.embeddings.word_embeddings.weight


@pytest.mark.parametrize("dtype", ["bfloat16", "fp16", torch.float32])
def test_dtype(checkpoint: Checkpoint, dtype: str | torch.dtype) -> None:
    model: Any = jrt_eval.load_model(checkpoint("based_decay"), device="cpu", dtype=dtype)
    expected = {"bfloat16": torch.bfloat16, "fp16": torch.float16}.get(str(dtype), torch.float32)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert torch.equal(model.transformer.decay.decay, tiny("based_decay").transformer.decay.decay)
    assert torch.equal(model.half().transformer.decay.decay, tiny("based_decay").transformer.decay.decay)


def test_decay_comes_from_the_file(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based_decay")
    change(folder, lambda t: t["transformer.decay.decay"].fill_(-0.25))
    model: Any = jrt_eval.load_model(folder, device="cpu")
    assert model.transformer.decay.decay.tolist() == [-0.25] * 4
    change(folder, lambda t: t.pop("transformer.decay.decay"))
    model = jrt_eval.load_model(folder, device="cpu")
    expected = torch.tensor([1 - 2.0 ** (-2 - h) for h in range(4)]).log()
    torch.testing.assert_close(model.transformer.decay.decay, expected)


def test_convolution_bias_where_the_file_has_one(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")

    def add(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            if name.endswith("conv.conv.weight"):
                tensors[name.replace("weight", "bias")] = torch.ones(tensors[name].shape[0])

    ids = torch.arange(9)[None]
    with torch.no_grad():
        without: Any = jrt_eval.load_model(folder, device="cpu")(ids).logits
        change(folder, add)
        model: Any = jrt_eval.load_model(folder, device="cpu")
        assert model.transformer.layers[0].mixer.conv.conv.bias.tolist() == [1.0] * 96
        assert not torch.allclose(model(ids).logits, without, atol=1e-3)


def test_keys_are_strict(checkpoint: Checkpoint) -> None:
    folder = checkpoint("jrt")
    change(folder, lambda t: t.update({"transformer.layers.1.mixer.proj_x.weight": torch.ones(2, 3)}))
    assert "unexpected transformer.layers.1.mixer.proj_x.weight (2, 3)" in refused(folder)
    change(folder, lambda t: t.pop("transformer.layers.1.mixer.proj_x.weight"))
    change(folder, lambda t: t.update({"transformer.layers.1.mixer.proj_q.weight": torch.ones(24, 47)}))
    assert "transformer.layers.1.mixer.proj_q.weight has shape (24, 47), expected (24, 48)" in refused(folder)
    change(folder, lambda t: t.pop("transformer.layers.1.mixer.proj_q.weight"))
    assert "missing transformer.layers.1.mixer.proj_q.weight (24, 48)" in refused(folder)


def test_head_that_contradicts_the_tie(checkpoint: Checkpoint) -> None:
    folder = checkpoint("attn")
    change(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    assert "lm_head.weight differs" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(checkpoint: Checkpoint, value: float) -> None:
    folder = checkpoint("based")
    change(folder, lambda t: t["transformer.layers.3.mlp.fc2.weight"][3].fill_(value))
    assert "transformer.layers.3.mlp.fc2.weight holds NaN or infinite" in refused(folder)


def test_whole_numbers_for_weights(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")
    change(folder, lambda t: t.update({"transformer.ln_f.weight": t["transformer.ln_f.weight"].long()}))
    assert "transformer.ln_f.weight is int64, floating point was expected" in refused(folder)


@pytest.mark.parametrize("safetensors", [False, True], ids=["bin", "safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_file(checkpoint: Checkpoint, safetensors: bool, keep: float) -> None:
    folder = checkpoint("based", safetensors=safetensors)
    path = folder / ("model.safetensors" if safetensors else "pytorch_model.bin")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    message = refused(folder)
    assert path.name in message
    assert "truncated" in message


def test_lfs_pointer(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs pointer" in refused(folder)


class Hostile:
    """Unpickled by Python's own means, this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "plain pickle"])
def test_a_pickle_that_would_execute_is_refused(checkpoint: Checkpoint, tmp_path: Path, zipped: bool) -> None:
    folder, trace = checkpoint("based"), tmp_path / "owned"
    path = folder / "pytorch_model.bin"
    if zipped:
        torch.save({"transformer.ln_f.weight": Hostile(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"transformer.ln_f.weight": Hostile(trace)}))
    message = refused(folder)
    assert path.name in message
    assert "holds more than tensors" in message
    assert "system" in message or not zipped
    assert not trace.exists()


def test_a_target_that_names_code_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, trace = checkpoint("based"), tmp_path / "owned"
    config = json.loads((folder / "config.json").read_text())
    config["mixer"] = {"_target_": "os.system", "command": f"touch {trace}"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "'os.system', known mixers are" in refused(folder)
    assert not trace.exists()


def test_an_index_cannot_leave_its_folder(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")
    (folder / "pytorch_model.bin").rename(folder.parent / "elsewhere.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    assert "must be in the folder of its index" in refused(folder)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "shard-1.bin"}}))
    assert "lists shard-1.bin, which does not exist" in refused(folder)


def test_places_that_hold_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(released_config("attn")))
    assert "has no weights" in refused(tmp_path)
    assert "is a file" in refused(tmp_path / "config.json")
    assert "hub" in refused("no such id!/x")


@pytest.mark.parametrize(
    "error", ["RepositoryNotFoundError", "LocalEntryNotFoundError", "RevisionNotFoundError", "OSError"]
)
def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """What huggingface_hub raises for an unknown id, without network, for an unknown revision."""
    import huggingface_hub
    import huggingface_hub.errors

    def download(*_: Any, **__: Any) -> str:
        kind = OSError if error == "OSError" else getattr(huggingface_hub.errors, error)
        raise kind.__new__(kind) if error != "OSError" else OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    message = refused("hazyresearch/nowhere", revision="v9")
    assert "hazyresearch/nowhere" in message
    says = {
        "RepositoryNotFoundError": "no such repository",
        "LocalEntryNotFoundError": "cannot be reached",
        "RevisionNotFoundError": "no revision 'v9'",
        "OSError": "Network is unreachable",
    }
    assert says[error] in message


def test_earlier_downloads_serve_without_network(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache as a download leaves it: the repository has no safetensors, and only the hub could say so."""
    import functools

    import huggingface_hub

    commit, cache = "0" * 40, tmp_path / "cache" / "models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    snapshot = cache / "snapshots" / commit
    snapshot.parent.mkdir()
    checkpoint("jrt").rename(snapshot)
    download = functools.partial(huggingface_hub.hf_hub_download, cache_dir=cache.parent)

    def offline(*args: Any, **kwargs: Any) -> str:
        return download(*args, **kwargs | {"local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    model: Any = jrt_eval.load_model("someone/tiny", device="cpu")
    assert model.family == "jrt"
    (snapshot / "pytorch_model.bin").unlink()
    assert "cannot be reached, and its local cache has no weights" in refused("someone/tiny")


def test_dtype_that_is_not_known(checkpoint: Checkpoint) -> None:
    assert "did you mean 'bfloat16'" in refused(checkpoint("attn"), dtype="bfloat61")


def test_mixed_dtypes(checkpoint: Checkpoint) -> None:
    """A file of several dtypes is read as the one that holds them all; others are refused."""
    folder = checkpoint("based")
    change(folder, lambda t: t.update({k: v.bfloat16() for k, v in t.items() if "norm" not in k}))
    assert jrt_eval.load_model(folder, device="cpu")(torch.arange(9)[None]).logits.isfinite().all()
    change(folder, lambda t: t.update({k: v.double() for k, v in t.items()}))
    model: Any = jrt_eval.load_model(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    change(folder, lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items() if "fc1" in k}))
    assert "fc1.weight is float8_e4m3fn; weights are needed as float32, bfloat16 or float16" in refused(folder)


def test_tokenizer_larger_than_the_vocabulary(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")  # 251 words, 256 rows
    JRTLM(str(folder), tokenizer=byte_tokenizer(256), device="cpu")
    with pytest.raises(UserError, match=r"256 rows in its vocabulary, the tokenizer .* 257 tokens"):
        JRTLM(str(folder), tokenizer=byte_tokenizer(257), device="cpu")


def test_bare_tokenizer_folders(shared: Path, tmp_path: Path) -> None:
    text = "Mount Pinatubo\n\n erupted: 1991  (naïve, 日本)."
    for name, size in [("gpt2", 50257), ("gpt-neox-20b", 50277)]:
        tokenizer = load_tokenizer(shared / "data" / name)
        assert len(tokenizer) == size
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    gpt2 = load_tokenizer(shared / "data" / "gpt2")
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" ") == [220]
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_python_use(checkpoint: Checkpoint) -> None:
    """The lines that the README shows."""
    model: Any = jrt_eval.load_model(checkpoint("jrt"))
    prompt = torch.tensor([[17, 4, 99]])
    out = model.generate(prompt, max_new_tokens=5)
    assert out.shape == (1, 8)
    assert torch.equal(out[:, :3].cpu(), prompt)
    assert model.state_size() > 0


def test_initialisation_of_the_release() -> None:
    model = from_config(released_config("jrt", n_embd=256, n_layer=8, special_initializer=True), seed=0)
    std = (2 / (5 * 256)) ** 0.5
    mixer: Any = model.transformer.layers[1].mixer
    assert mixer.proj_q.weight.std().item() == pytest.approx(std, rel=0.05)
    assert mixer.out_proj.weight.std().item() == pytest.approx(std / 4, rel=0.05)
    again = from_config(released_config("jrt", n_embd=256, n_layer=8), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_saving_writes_the_release_form(tmp_path: Path) -> None:
    model = tiny("jrt")
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == released_config("jrt")
    assert "transformer.layers.1.mixer.proj_k_enc.weight" in torch.load(
        tmp_path / "pytorch_model.bin", weights_only=True
    )
