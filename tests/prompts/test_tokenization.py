"""Token counts by pieces are those of whole texts, or pieces are not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError
from jrt_eval.models.tokenizers import load_tokenizer
from jrt_eval.prompts import tokenization
from jrt_eval.prompts.tokenization import Tokenizer, load

SHARED = Path(__file__).parents[2].parent / "shared"
NAMES = ["gpt2", "gpt-neox-20b"]
WORDS = st.sampled_from(
    [
        "the",
        "a",
        "I'm",
        "'s",
        "x",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "12",
        ",",
        ".",
        "…",
        "😀",
        "\u00a0",
        "<|endoftext|>",
        "ﬁ",
    ]
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from(["", " ", "  ", "\n", "\t ", " \n ", "   "])), max_size=40).map(
    lambda parts: "".join(word + blank for word, blank in parts)
)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared folder beside the checkout")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, at=st.integers(-1, 200))
def test_pieces_are_exact(name: str, text: str, at: int) -> None:
    tokenizer = load(str(SHARED / "data" / name))
    assert tokenizer.by_pieces
    whole, prefix = tokenizer.encode([text, text[:at]])
    assert tokenizer.encode_with_prefix([text], [at]) == [(whole, len(prefix))]
    assert tokenizer.count([text]) == [len(whole)]


def test_another_kind_of_tokenizer_encodes_whole_texts() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # a blank is prepended: pieces would have one each
    backend.train_from_iterator(["the cat sat on the mat and the dog"] * 3, trainers.BpeTrainer(special_tokens=["?"]))
    tokenizer = Tokenizer("metaspace", PreTrainedTokenizerFast(tokenizer_object=backend))
    assert not tokenizer.by_pieces
    whole, prefix = tokenizer.encode(["the cat sat on", "the cat"])
    assert tokenizer.encode_with_prefix(["the cat sat on"], [7]) == [(whole, len(prefix))]
    assert tokenizer.count(["the cat sat on"]) == [len(whole)]


def test_a_token_across_a_seam_forbids_pieces(shared: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend.from_file(str(shared / "data" / "gpt-neox-20b" / "tokenizer.json"))
    backend.add_tokens([AddedToken("New York")])
    tokenizer = Tokenizer("with a token of two words", PreTrainedTokenizerFast(tokenizer_object=backend))
    assert not tokenizer.by_pieces
    assert tokenizer.count(["in New York now"]) == [len(tokenizer.encode(["in New York now"])[0])]


def test_the_memo_is_bounded(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_MEMO_PIECES", 5)
    tokenizer = Tokenizer("small memo", load_tokenizer(shared / "data" / "gpt2"))
    texts = [f"some words with number {i} and word {'x' * i}" for i in range(20)]
    assert tokenizer.count(texts) == [len(ids) for ids in tokenizer.encode(texts)]
    assert [n for text in texts for n in tokenizer.count([text])] == tokenizer.count(texts)


def test_the_environment_is_left_as_it_was(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(str(shared / "data" / "gpt2"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tokenizer.encode(["a", "b"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_gpt2_knows_its_end_of_text(shared: Path) -> None:
    tokenizer = load(str(shared / "data" / "gpt2"))
    assert tokenizer.encode(["a<|endoftext|>"]) == [[64, 50256]]
    assert tokenizer.decode([64, 50256]) == "a<|endoftext|>"


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"tokenizer": "t", "pretrained": "p"}, "t"),
        ({"pretrained": "p"}, "p"),
        ({"checkpoint_name": "c"}, "c"),
        ({"tokenizer": "", "pretrained": "p"}, "p"),
        ({"model": "gpt-4o", "base_url": "http://x"}, None),
        ({}, None),
    ],
)
def test_whose_tokenizer(metadata: dict[str, str], name: str | None) -> None:
    assert tokenization.requested(metadata) == name


def test_a_missing_tokenizer_says_where_to_give_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 251}')
    with pytest.raises(UserError, match=r"has no tokenizer .*; give a tokenizer with --metadata tokenizer="):
        load(str(tmp_path))


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        load(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.json").write_text("{}")
    (other / "merges.txt").write_text("a b\n")
    with pytest.raises(UserError, match="no byte-level BPE"):
        load(str(other))


def test_prompts_import_neither_torch_nor_lm_eval() -> None:
    import subprocess
    import sys

    code = (
        "import sys, jrt_eval.prompts, jrt_eval.prompts.documents, jrt_eval.prompts.metrics; "
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
