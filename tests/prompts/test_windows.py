"""Windows: positions, budgets, and the same windows by pieces and whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jrt_eval.errors import UserError
from jrt_eval.prompts import tokenization, windows
from jrt_eval.prompts.windows import Budget, UncutDocument, answer_position, cut, find, span, tidy, unfit


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> tokenization.Tokenizer:
    return tokenization.load(str(shared / "data" / "gpt2"))


@pytest.mark.parametrize(
    ("text", "literal", "at"),
    [
        ("The CAT sat", "cat", 4),
        ("costs $20 (or more)", "$20 (OR", 6),
        ("a.c abc", "a.c", 0),
        ("abc a.c", "a.c", 4),
        ("nothing", "cat", -1),
        ("İİ Istanbul", "istanbul", 3),  # lower() of a dotted capital I is two characters long
        ("STRASSE straße", "straße", 8),
    ],
)
def test_find_is_a_literal_that_ignores_case(text: str, literal: str, at: int) -> None:
    assert find(text, literal) == at


def test_position_is_the_first_of_all_anchors() -> None:
    assert answer_position(UncutDocument("  maker: Acme", ("acme", "maker"))) == 0  # in the stripped text
    assert answer_position(UncutDocument("by Acme", ("maker", "acme"))) == 3
    assert answer_position(UncutDocument("by Acme", ())) == 0
    assert answer_position(UncutDocument("by Acme", ("none",))) == -1


def test_alternatives_only_where_no_anchor_matches() -> None:
    assert answer_position(UncutDocument("ab cd ef", ("zz",), ("yy", "EF", "ab"))) == 6
    assert answer_position(UncutDocument("ab cd ef", ("cd",), ("ab",))) == 3


def test_short_anchors_drop() -> None:
    assert unfit(("a", "long"))
    assert unfit(("",))
    assert not unfit(())
    assert not unfit(("ab",))


@pytest.mark.parametrize(
    ("answer", "tokens", "budget", "expected"),
    [
        (0, 10, 4, (0, 4)),
        (5, 10, 4, (3, 7)),
        (9, 10, 4, (7, 10)),
        (8, 10, 100, (0, 10)),
        (60, 80, 100, (10, 80)),  # shorter than the budget, and still without its head
        (5, 20, 5, (3, 8)),
        (30, 10, 4, (28, 10)),  # tok_pos beyond the document: nothing is left
    ],
)
def test_span(answer: int, tokens: int, budget: int, expected: tuple[int, int]) -> None:
    assert span(answer, tokens, budget) == expected


def plain_window(source: UncutDocument, tokenizer: tokenization.Tokenizer, n: int) -> str:
    """The definition, word by word, without any batching."""
    text = source.text.strip()
    (ids,) = tokenizer.encode([text])
    position = answer_position(source)
    (prefix,) = tokenizer.encode([text[:position]])
    a = len(prefix)
    if position == -1 and source.tok_pos is not None and a > n:
        a = source.tok_pos
    start = max(0, a - n // 2)
    return tidy(tokenizer.decode(ids[start : min(len(ids), a + (n - (a - start)))]))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox-20b"])
@pytest.mark.parametrize("context_length", [60, 150])
def test_windows_are_the_definitions(name: str, context_length: int, shared: Path) -> None:
    tokenizer = tokenization.load(str(shared / "data" / name))
    assert tokenizer.by_pieces
    rng = random.Random(context_length)
    text = (shared / "data" / "text" / "wikitext-2.valid.txt").read_text()
    sources = []
    for _ in range(150):
        at, size = rng.randrange(len(text) - 4000), rng.randrange(10, 4000)
        passage = text[at : at + size]
        where = rng.randrange(size)
        anchor = passage[where : where + rng.randrange(2, 20)]
        missing = rng.random() < 0.3
        sources.append(
            UncutDocument(f" {passage}\n", ("zqzq" if missing else anchor,), (), rng.choice([None, 0, 3, 400]))
        )
    sources = [source for source in sources if not unfit(source.anchors)]
    got = cut(sources, tokenizer, Budget(context_length))
    expected = [plain_window(source, tokenizer, context_length - 50) for source in sources]
    assert [window.text for window in got if window] == expected


def test_tok_pos_counts_only_where_nothing_matches_and_the_document_is_long(gpt2: tokenization.Tokenizer) -> None:
    text = "one two three four five six seven eight nine ten " * 10
    near, far = (cut([UncutDocument(text, ("absent",), (), at)], gpt2, Budget(70))[0] for at in (10, None))
    assert near
    assert far
    assert (near.start, near.end, near.answer_position) == (0, 20, 10)
    assert far.answer_position is None
    assert far.end == far.document_tokens
    found = cut([UncutDocument(text, ("three",), (), 90)], gpt2, Budget(70))[0]
    assert found
    assert found.answer_position == 2 + 1


def test_order_chunks_and_neighbours_change_nothing(
    gpt2: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    words = ["alpha", "beta", "gamma,", "delta.", "epsilon\nzeta", "eta's", "theta"]
    sources = [UncutDocument(" ".join(rng.choices(words, k=rng.randrange(5, 300))), ("delta",)) for _ in range(40)]
    together = cut(sources, gpt2, Budget(100))
    alone = [cut([source], gpt2, Budget(100))[0] for source in sources]
    assert together == alone
    monkeypatch.setattr(windows, "CHUNK_CHARACTERS", 1)
    done: list[int] = []
    assert cut(sources, gpt2, Budget(100), done.append) == together
    assert done == [1] * 40


def test_dropped_documents_keep_the_places_of_the_others(gpt2: tokenization.Tokenizer) -> None:
    got = cut([UncutDocument("ab", ("a",)), UncutDocument("ab cd", ("cd",)), UncutDocument("", ())], gpt2, Budget(60))
    assert got[0] is None
    assert [window.text for window in got[1:] if window] == ["ab cd", ""]


@pytest.mark.parametrize("name", [None, "null", "None"])
def test_no_window(name: str | None) -> None:
    assert Budget.of(name, 50) is None


@pytest.mark.parametrize(
    ("context", "answer"), [(0, 50), (-1, 0), (50, 50), ("x", 1), (1.5, 1), (None or [], 1), (9, "x")]
)
def test_bad_budgets(context: object, answer: object) -> None:
    with pytest.raises(UserError):
        Budget.of(context, answer)
