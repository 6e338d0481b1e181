"""Windows: positions, budgets, and the same windows by pieces and whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jrt_eval.errors import UserError
from jrt_eval.prompts import tokenization, windows
from jrt_eval.prompts.windows import (
    Budget,
    Dropped,
    UncutDocument,
    Window,
    answer_position,
    cut,
    find,
    span,
    span_at,
    tidy,
    unfit,
)


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


def windows_of(
    sources: list[UncutDocument], tokenizer: tokenization.Tokenizer, budget: Budget
) -> list[Window | Dropped]:
    return [window for (window,) in cut(sources, tokenizer, [budget])]


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
    got = windows_of(sources, tokenizer, Budget(context_length))
    expected = [plain_window(source, tokenizer, context_length - 50) for source in sources]
    assert [window.text for window in got if isinstance(window, Window)] == expected


def test_tok_pos_counts_only_where_nothing_matches_and_the_document_is_long(gpt2: tokenization.Tokenizer) -> None:
    text = "one two three four five six seven eight nine ten " * 10
    near, far = (windows_of([UncutDocument(text, ("absent",), (), at)], gpt2, Budget(70))[0] for at in (10, None))
    assert isinstance(near, Window)
    assert isinstance(far, Window)
    assert (near.start, near.end, near.answer_position) == (0, 20, 10)
    assert far.answer_position is None
    assert far.end == far.document_tokens
    found = windows_of([UncutDocument(text, ("three",), (), 90)], gpt2, Budget(70))[0]
    assert isinstance(found, Window)
    assert found.answer_position == 2 + 1


def test_order_chunks_and_neighbours_change_nothing(
    gpt2: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    words = ["alpha", "beta", "gamma,", "delta.", "epsilon\nzeta", "eta's", "theta"]
    sources = [UncutDocument(" ".join(rng.choices(words, k=rng.randrange(5, 300))), ("delta",)) for _ in range(40)]
    together = windows_of(sources, gpt2, Budget(100))
    alone = [windows_of([source], gpt2, Budget(100))[0] for source in sources]
    assert together == alone
    monkeypatch.setattr(windows, "CHUNK_CHARACTERS", 1)
    done: list[int] = []
    assert cut(sources, gpt2, [Budget(100)], done.append) == [(window,) for window in together]
    assert done == [1] * 40


def test_dropped_documents_keep_the_places_of_the_others(gpt2: tokenization.Tokenizer) -> None:
    got = windows_of(
        [UncutDocument("ab", ("a",)), UncutDocument("ab cd", ("cd",)), UncutDocument("", ())], gpt2, Budget(60)
    )
    assert got[0] is Dropped.SHORT_ANCHOR
    assert [window.text for window in got[1:] if isinstance(window, Window)] == ["ab cd", ""]


@pytest.mark.parametrize("name", [None, "null", "None"])
def test_no_window(name: str | None) -> None:
    assert Budget.grid(name, 50) == ()


@pytest.mark.parametrize(
    ("context", "answer", "depth"),
    [
        (0, 50, None), (-1, 0, None), (50, 50, None), ("x", 1, None), (1.5, 1, None), ([], 1, None), (9, "x", None),
        ([60, None], 50, None), ([60, 60], 50, None), ([60, "x"], 50, None), (60, 50, 1.1), (60, 50, -0.1),
        (60, 50, "deep"), (60, 50, True), (60, 50, float("nan")), (60, 50, []), (60, 50, [0.5, 0.5]), (None, 50, 0.5),
    ],
)  # fmt: skip
def test_bad_budgets(context: object, answer: object, depth: object) -> None:
    with pytest.raises(UserError):
        Budget.grid(context, answer, depth)


def test_a_budget_for_each_length_and_depth() -> None:
    assert Budget.grid("100", 50) == (Budget(100),)
    assert Budget.grid([100, 200.0], 50, [0, "1"]) == tuple(
        Budget(length, 50, depth) for length in (100, 200) for depth in (0.0, 1.0)
    )


@pytest.mark.parametrize(
    ("depth", "answer", "expected"),
    [
        (0, (50, 52), (50, 70)),
        (1, (50, 52), (32, 52)),
        (0.5, (50, 52), (41, 61)),
        (0, (80, 82), (80, 100)),
        (0, (81, 82), None),
        (1, (18, 20), (0, 20)),
        (1, (17, 19), None),
        (0.5, (50, 71), None),  # an answer longer than the window
    ],
)
def test_span_at_a_depth(depth: float, answer: tuple[int, int], expected: tuple[int, int] | None) -> None:
    assert span_at(depth, answer, 100, 20) == expected


def test_windows_of_a_grid_hold_the_answer_at_its_depth(gpt2: tokenization.Tokenizer, shared: Path) -> None:
    text = (shared / "data" / "text" / "wikitext-2.valid.txt").read_text()
    rng = random.Random(5)
    sources = []
    for _ in range(40):
        begin = rng.randrange(len(text) - 12_000)
        document, at = text[begin : begin + 12_000], rng.randrange(200, 11_000)
        sources.append(UncutDocument(document, (" ".join(document[at:].split(" ")[1:4]),)))
    budgets = Budget.grid([150, 400], 50, [0, 0.3, 1])
    windows = cut(sources, gpt2, budgets)
    assert windows == [tuple(windows_of([s], gpt2, b)[0] for b in budgets) for s in sources]  # each alone
    found = 0
    for source, row in zip(sources, windows, strict=True):
        for budget, window in zip(budgets, row, strict=True):
            if window is Dropped.NO_ROOM:
                continue
            assert isinstance(window, Window)
            found += 1
            assert window.end - window.start == budget.tokens
            (ids,) = gpt2.encode([source.text.strip()])
            raw = gpt2.decode(ids[window.start : window.end])
            at = find(raw, source.anchors[0])
            assert at >= 0
            room = len(raw) - len(source.anchors[0])
            assert at / room == pytest.approx(budget.depth, abs=0.15)  # in characters, which tokens differ from
            assert (at < 12) == (budget.depth == 0)
            assert (room - at < 12) == (budget.depth == 1)
    assert found > 150


def test_an_answer_that_is_absent_has_no_depth(gpt2: tokenization.Tokenizer) -> None:
    source = UncutDocument("one two three " * 50, ("absent",), ("THREE",), 7)
    missing = UncutDocument("one two three " * 50, ("absent",), (), 7)
    assert isinstance(windows_of([source], gpt2, Budget(60, 50, 0.0))[0], Window)
    assert windows_of([missing], gpt2, Budget(60, 50, 0.0)) == [Dropped.NOT_FOUND]
