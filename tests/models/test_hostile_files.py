"""Weight files and configs that are damaged, stale or made to exhaust memory: a right result, or one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import released_config, tiny

from jrt_eval.errors import UserError
from jrt_eval.models import load_model, save_pretrained
from jrt_eval.models.recurrent.config import parse_config

Checkpoint = Callable[..., Path]
NORM = "transformer.ln_f.weight"
IDS = torch.arange(20)[None]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_model(folder, device="cpu")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    return str(raised.value)


def sharded(folder: Path, *, safetensors: bool, stale: bool = True) -> Path:
    """A checkpoint in two shards; the second has another tensor of a name that the index assigns to the first."""
    state = {k: v.detach().clone() for k, v in tiny("based").state_dict().items() if k != "lm_head.weight"}
    names = sorted(state)
    assert NORM in names[len(names) // 2 :]
    one, two = ({k: state[k] for k in part} for part in (names[: len(names) // 2], names[len(names) // 2 :]))
    stem, end = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    files = [f"{stem}-0000{i}-of-00002.{end}" for i in (1, 2)]
    assigned = dict.fromkeys(one, files[0]) | dict.fromkeys(two, files[1])
    if stale:
        one[NORM], two[names[0]] = torch.full_like(state[NORM], 7.0), torch.full_like(state[names[0]], 7.0)
    save_pretrained(tiny("based"), folder)
    (folder / "pytorch_model.bin").unlink()
    for file, tensors in zip(files, (one, two), strict=True):
        save_file(tensors, str(folder / file)) if safetensors else torch.save(tensors, folder / file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": assigned}))
    return folder


@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
def test_the_index_says_which_file_a_tensor_is_read_from(tmp_path: Path, safetensors: bool) -> None:
    model: Any = load_model(sharded(tmp_path, safetensors=safetensors), device="cpu", backend="torch")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, tiny("based")(IDS).logits, rtol=0, atol=0)


def test_an_index_with_errors(tmp_path: Path) -> None:
    folder = sharded(tmp_path, safetensors=True)
    index = folder / "model.safetensors.index.json"
    assigned = json.loads(index.read_text())["weight_map"]
    text = json.dumps({"weight_map": assigned})
    index.write_text(text.replace(f'"{NORM}"', f'"{NORM}": "model-00001-of-00002.safetensors", "{NORM}"'))
    assert "occurs twice" in refused(folder)
    index.write_text(json.dumps({"weight_map": assigned | {"transformer.new": "model-00001-of-00002.safetensors"}}))
    assert "lacks transformer.new" in refused(folder)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "not an index" in refused(folder)


def test_duplicates_for_a_transformers_class_are_refused(tmp_path: Path) -> None:
    """transformers reads every shard, so a stale tensor could win."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(tmp_path, max_shard_size="20KB")
    load_model(tmp_path, device="cpu")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(set(index.values()))
    assert len(shards) > 1
    from safetensors.torch import load_file

    moved = next(iter(load_file(tmp_path / shards[0]).items()))
    save_file(load_file(tmp_path / shards[1]) | {moved[0]: moved[1] + 1}, tmp_path / shards[1], {"format": "pt"})
    assert f"{moved[0]} is in" in refused(tmp_path)


def test_keys_that_occur_twice(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"n_head": 4', '"n_head": 2, "n_head": 4', 1))
    assert "the key 'n_head' occurs twice" in refused(folder)
    (folder / "config.json").write_text(text.replace('"window_size"', '"window_size": 4, "window_size"', 1))
    assert "the key 'window_size' occurs twice" in refused(folder)


def outcome(raw: dict[str, Any]) -> str:
    """The error's text, or nothing."""
    try:
        parse_config(raw)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", ["based", "jrt", "based_decay", "attn"])
@pytest.mark.parametrize(
    "value", ["abc", -0.5, float("inf"), float("nan"), 10**400, 1e300, [], {}, True], ids=lambda v: str(v)[:9]
)
def test_numbers_out_of_range(family: str, value: Any) -> None:
    """Every number of a config, replaced: a value that is used as it is, or one line that names the key."""
    raw = released_config(family)
    for key in [k for k, v in raw.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]:
        message = outcome(raw | {key: value})
        assert message == "" or key in message
        assert "\n" not in message and len(message) < 400
        assert message or key not in ("layer_norm_epsilon", "n_embd", "n_head", "n_layer", "vocab_size"), (key, value)
    for tag in ("mixer", "alt_mixer", "alt_mixer_2"):
        for key in [k for k, v in raw.get(tag, {}).items() if isinstance(v, int) and not isinstance(v, bool)]:
            if key != "kernel_sizes":  # chooses an implementation
                with pytest.raises(UserError, match=key):
                    parse_config(raw | {tag: raw[tag] | {key: value}})


def test_null_means_the_default_and_never_a_traceback() -> None:
    raw = released_config("jrt")
    for key in raw:
        message = outcome(raw | {key: None})
        assert message == "" or key in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_layer": 4000}, "the weight file has 4 layers"),
        ({"enc_length": 10**9, "alt_mixer": None}, ""),
        ({"vocab_size": 2**30}, "has shape"),
        ({"n_embd": 2**20, "n_head": 4}, "has shape"),
        ({"alt_mixer_2": {"_target_": "x.SlidingAttention", "window_size": 10**8}}, "window_size"),
        ({"alt_mixer": {"_target_": "x.PrefixLinearAttention", "enc_length": 10**9}}, "enc_length"),
    ],
)
def test_sizes_are_compared_with_the_weight_file(checkpoint: Checkpoint, change: dict[str, Any], says: str) -> None:
    import resource

    folder = checkpoint("jrt")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert says in refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, the weight file has 2 layers"),
        ({"hidden_size": 2**16}, "the weights do not fit the config"),
        ({"vocab_size": 2**28}, "the weights do not fit the config"),
        ({"vocab_size": 10**30}, "vocab_size is"),
        ({"rms_norm_eps": -0.5}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rms_norm_eps": "abc"}, "rms_norm_eps"),
    ],
)
def test_sizes_of_transformers_configs(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert says in refused(tmp_path)


def test_a_tensor_larger_than_its_storage(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based", rms_norm=True)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for huge in (torch.zeros(1).expand(10**11), torch.zeros(4).as_strided((10**6, 10**5), (0, 0))):
        torch.save(tensors | {NORM: huge}, folder / "pytorch_model.bin")
        assert f"{NORM} has 1" in refused(folder)
    torch.save(tensors | {NORM: torch.zeros(48).to_sparse()}, folder / "pytorch_model.bin")
    assert "not an ordinary dense tensor" in refused(folder)
    torch.save(tensors | {NORM: torch.zeros(48, device="meta")}, folder / "pytorch_model.bin")
    assert "not an ordinary dense tensor" in refused(folder)


def test_a_compressed_archive(checkpoint: Checkpoint) -> None:
    """Deflated zeros: a file of kilobytes that expands to a gigabyte."""
    folder = checkpoint("based")
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert "compressed parts" in refused(folder)


def test_nesting_and_numbers_without_end(checkpoint: Checkpoint) -> None:
    folder = checkpoint("based")
    (folder / "config.json").write_text('{"a": ' * 20_000 + "1" + "}" * 20_000)
    assert "nested too deeply" in refused(folder)
    (folder / "config.json").write_text('{"n_layer": ' + "9" * 5000 + "}")
    assert "is not JSON" in refused(folder)
