"""The tokenizer rule and the context-length rule: windows, training and the adapter follow the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jrt_eval.model_adapters.jrt import JRTLM
from tiny_models import byte_tokenizer, mamba_layout

from jrt_eval.data import text
from jrt_eval.errors import UserError
from jrt_eval.models import tokenizers
from jrt_eval.models.context import context_length, context_length_of
from jrt_eval.models.tokenizers import default_tokenizer, load_tokenizer
from jrt_eval.prompts import tokenization

RELEASED = {"n_embd": 64, "n_layer": 1, "n_head": 1, "rms_norm": True}
MAMBA = {"d_model": 64, "n_layer": 1, "ssm_cfg": {}}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (RELEASED | {"vocab_size": 50257}, "gpt2"),
        (RELEASED | MAMBA | {"vocab_size": 50277}, "gpt2"),  # hazyresearch's Mamba: GPT-2's text in more rows
        (MAMBA | {"vocab_size": 50277}, "EleutherAI/gpt-neox-20b"),
        (MAMBA | {"vocab_size": 50280}, "EleutherAI/gpt-neox-20b"),
        (MAMBA | {"vocab_size": 50288}, "EleutherAI/gpt-neox-20b"),
        (MAMBA | {"vocab_size": 50257}, "gpt2"),
        (MAMBA | {"vocab_size": 251}, None),
        (RELEASED | {"vocab_size": 251}, None),
        ({"vocab_size": "50257"}, None),
        ({}, None),
    ],
)
def test_default_tokenizer(config: dict[str, Any], name: str | None) -> None:
    assert default_tokenizer(config) == name


@pytest.fixture
def asked(shared: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """(name, revision) of every tokenizer that is asked of the hub, where GPT-2's and GPT-NeoX's are local copies."""
    asked = []
    original = tokenizers.load_tokenizer

    def load(name: Any, revision: str | None = None, **kwargs: Any) -> Any:
        if str(name) in (tokenizers.GPT2, tokenizers.GPT_NEOX):
            asked.append((str(name), revision))
            tokenizer = original(shared / "data" / str(name).rsplit("/", maxsplit=1)[-1])
            tokenizer.name_or_path = str(name)
            return tokenizer
        return original(name, revision, **kwargs)

    for module in (tokenizers, tokenization):
        monkeypatch.setattr(module, "load_tokenizer", load)
    tokenization.load.cache_clear()
    return asked


def test_windows_training_and_adapter_agree(
    tmp_path: Path, asked: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in mamba_ssm's layout without a tokenizer, vocabulary 50,257: once windowed by one, evaluated by another."""
    import jrt_eval.model_adapters.jrt as adapter

    monkeypatch.setattr(adapter, "load_tokenizer", tokenizers.load_tokenizer)
    mamba_layout(tmp_path, 1, vocab_size=50264)
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(config))
    window = tokenization.resolve({"pretrained": str(tmp_path), "revision": "v2"})
    text.load_tokenizer.cache_clear()
    trained, evaluated = text.load_tokenizer(str(tmp_path)), JRTLM(str(tmp_path), revision="v2", device="cpu").tokenizer
    assert window is not None
    for tokenizer in (window.transformers, trained, evaluated):
        assert tokenizer.name_or_path == "gpt2"
        assert len(tokenizer) == 50257
    assert asked == [("gpt2", None)] * 3  # the revision is the model's, not that of another repository


def test_revision_reaches_the_models_own_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    byte_tokenizer(20, end=3).save_pretrained(tmp_path)
    revisions = []

    def download(repo: str, filename: str, revision: str | None = None, **_: Any) -> str:
        revisions.append((repo, revision))
        if not (tmp_path / filename).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(filename)
        return str(tmp_path / filename)

    def from_pretrained(name: str, revision: str | None = None, **_: Any) -> Any:
        revisions.append((name, revision))
        return byte_tokenizer(20, end=3)

    from transformers import AutoTokenizer

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    tokenization.load.cache_clear()
    load_tokenizer("someone/model", "v2")
    tokenization.resolve({"pretrained": "someone/model", "revision": "v2"})
    assert len(revisions) >= 4
    assert set(revisions) == {("someone/model", "v2")}


def test_a_lone_tokenizer_file(tmp_path: Path) -> None:
    """`</s>` ends a text; it begins none."""
    from tokenizers import Tokenizer, models

    for extra, begin, end in [
        (["<s>", "</s>"], "<s>", "</s>"),
        (["</s>"], None, "</s>"),
        (["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>"),
        ([], None, None),
    ]:
        words = {word: i for i, word in enumerate(["a", "b", *extra])}
        Tokenizer(models.WordLevel(words, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
        for name in (tmp_path, tmp_path / "tokenizer.json"):
            tokenizer = load_tokenizer(name)
            assert (tokenizer.bos_token, tokenizer.eos_token) == (begin, end)


def test_no_code_of_a_tokenizer_is_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["evil.Mine", None]}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    for load in (load_tokenizer, text.load_tokenizer, tokenization.load):
        with pytest.raises(UserError):
            load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "limit", "length"),
    [
        (RELEASED | {"max_position_embeddings": 0, "n_positions": 0}, 1024, 2048),
        (RELEASED | {"max_position_embeddings": 512}, None, 512),
        (RELEASED | {"n_positions": 4096}, None, 2048),
        (MAMBA, 1024, 2048),
        ({"model_type": "llama", "max_position_embeddings": 8192}, 4096, 8192),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}, "n_ctx": 7}, None, 131072),
        ({"model_type": "mamba", "hidden_size": 8}, 1024, 1024),
        ({"model_type": "mamba", "hidden_size": 8}, 10**30, 2048),
        ({"model_type": "mamba", "hidden_size": 8}, None, 2048),
    ],
)
def test_context_length(config: dict[str, Any], limit: int | None, length: int) -> None:
    tokenizer = byte_tokenizer(20)
    tokenizer.model_max_length = limit
    assert context_length(config, tokenizer) == length


def test_context_length_by_name_has_the_class_defaults(tmp_path: Path) -> None:
    """GPT-2's class has 1,024 positions where config.json does not say; an unknown class has what its file says."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert context_length_of(str(tmp_path)) == 1024
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "max_position_embeddings": 333}))
    assert context_length_of(str(tmp_path)) == 333
