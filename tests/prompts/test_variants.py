"""What each variant puts before the last reading, and neutral text of a given length."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError
from jrt_eval.prompts import tokenization
from jrt_eval.prompts.clean import Parts, prompt
from jrt_eval.prompts.variants import VARIANTS, check_variant, neutral_characters, neutral_tokens, split_name

PARTS = Parts("A passage.", "Who?", "It is")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("once", "A passage. It is"),
        ("question_first", "Who? A passage. It is"),
        ("twice", "Who? A passage.\nA passage. It is"),
        ("thrice", "Who? A passage.\nA passage.\nA passage. It is"),
        ("verbose", "Who? A passage.\nLet me repeat that:\nA passage. It is"),
        ("padded", "#Who? A passage.#\nA passage. It is"),
    ],
)
def test_prompts(variant: str, expected: str) -> None:
    assert prompt(PARTS, variant, lambda text: f"#{text}#") == expected


def test_squads_first_reading_is_another_field() -> None:
    parts = Parts("Text with cloze", "Who?", "", first="Text")
    assert prompt(parts, "twice", str) == "Who? Text\nText with cloze"
    assert prompt(parts, "thrice", str) == "Who? Text\nText\nText with cloze"
    assert prompt(parts, "once", str) == "Text with cloze"


def test_every_variant_ends_with_the_same_reading() -> None:
    for variant in VARIANTS:
        assert prompt(PARTS, variant, neutral_characters).endswith("A passage. It is")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("arc_easy_twice", ("arc_easy", "twice")),
        ("a_question_first", ("a", "question_first")),
        ("a_twice_padded", ("a_twice", "padded")),
        ("twice", None),
        ("_twice", None),
        ("arc_easy", None),
    ],
)
def test_names(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match="did you mean 'padded'"):
        check_variant("paded")


def test_neutral_text_has_as_many_tokens(shared: Path) -> None:
    tokenizer = tokenization.load(str(shared / "data" / "gpt2"))

    def count(text: str) -> int:
        return tokenizer.count([text])[0]

    passage = (shared / "data" / "text" / "wikitext-2.valid.txt").read_text()[:20000]
    for size in (0, 1, 7, 300, 5000, 20000):
        wanted = count(passage[:size])
        assert wanted - 1 <= count(neutral_tokens(count)(passage[:size])) <= wanted


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=500))
def test_neutral_text_has_as_many_characters(text: str) -> None:
    assert len(text) - 1 <= len(neutral_characters(text)) <= len(text)
