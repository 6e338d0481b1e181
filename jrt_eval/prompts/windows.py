"""Windows: a document cut to a budget of tokens around its answer.

The window is placed by the gold answer, which only an oracle can do. It makes models with a short context comparable on
documents that are longer than they can read, and says nothing about how such a document would be cut in use.

Without a depth the window is centred on the answer as in the original, and a document that is short, or whose answer is
near an end, gives a shorter window. With a depth the window has its full length and the answer is at that depth in
it; a document in which no such window exists is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.prompts.tokenization import Tokenizer

# Documents are tokenized in chunks of this many characters, which bounds memory: a token costs the tokenizer 100 bytes.
CHUNK_CHARACTERS = 2_000_000


class Dropped(Enum):
    """Why a document has no window."""

    SHORT_ANCHOR = "the string that places the window has one character or none"
    NOT_FOUND = "the answer is not in the document"
    NO_ROOM = "the document has too few tokens before or after the answer for this length and depth"


@dataclass(frozen=True)
class Budget:
    """The length of a window: `context_length` tokens less the `answer_length` that are kept for the answer.

    depth: position of the answer in the window, from 0 (its first tokens) to 1 (its last); None: as in the original.
    """

    context_length: int
    answer_length: int = 50
    depth: float | None = None

    @property
    def tokens(self) -> int:
        return self.context_length - self.answer_length

    @staticmethod
    def of(context_length: Any, answer_length: Any, depth: Any = None) -> Budget:
        """The budget that the metadata ask for. Raises `UserError` unless it leaves a token for the document."""
        context_length = _integer("context_length", context_length)
        answer_length = _integer("answer_length", answer_length)
        if answer_length < 0:
            raise UserError(f"answer_length is {answer_length}: it must be 0 or more")
        if context_length <= answer_length:
            raise UserError(
                f"context_length is {context_length}: it must be more than answer_length ({answer_length}), "
                "or null for whole documents"
            )
        return Budget(context_length, answer_length, _depth(depth))

    @staticmethod
    def grid(context_length: Any, answer_length: Any, depth: Any = None) -> tuple[Budget, ...]:
        """A budget for each pair of a length and a depth, of which both may be lists; none where the length is null.

        Raises `UserError`.
        """
        depths = _entries("answer_depth", depth)
        if _is_null(context_length):
            if any(not _is_null(entry) for entry in depths):
                raise UserError("answer_depth needs windows: give a context_length")
            return ()
        lengths = _entries("context_length", context_length)
        return tuple(Budget.of(length, answer_length, entry) for length in lengths for entry in depths)


def _is_null(value: Any) -> bool:
    return value is None or str(value).lower() in ("none", "null")


def _entries(name: str, value: Any) -> list[Any]:
    """A setting that may be a list, as a list of distinct entries."""
    if not isinstance(value, (list, tuple)):
        return [value]
    if not value or len(set(map(str, value))) < len(value) or any(map(_is_null, value)):
        raise UserError(f"{name} is {list(value)}: a list must have distinct numbers, at least one")
    return list(value)


def _depth(value: Any) -> float | None:
    if _is_null(value):
        return None
    try:
        depth = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        depth = None
    if depth is None or not 0 <= depth <= 1:
        raise UserError(f"answer_depth is {value!r}: it must be a number from 0 (head) to 1 (end)")
    return depth


def _integer(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # lm_eval reads key=-3 on the command line as -3.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} is {value!r}: it must be an integer number of tokens")
    return value


@dataclass(frozen=True, slots=True)
class UncutDocument:
    """A document to cut: its text, and where its answer is looked for.

    anchors: the position is the smallest start of a match of any of them; none: position 0.
    alternatives: tried in order when no anchor matches. tok_pos: the answer's place in tokens as the data set gives it.
    """

    text: str
    anchors: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    tok_pos: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A cut document. `document_tokens`: of the whole; `answer_position`: tokens before the answer, or None if unknown.

    start, end: the window is the document's tokens [start, end).
    """

    text: str
    document_tokens: int
    answer_position: int | None
    start: int
    end: int


def find(text: str, literal: str) -> int:
    """Where `literal` first occurs in `text`, ignoring case; -1 if it does not."""
    match = _match(text, literal)
    return match.start() if match else -1


def _match(text: str, literal: str) -> re.Match[str] | None:
    return re.search(re.escape(literal), text, re.IGNORECASE)


def unfit(anchors: Sequence[str]) -> bool:
    """Whether an anchor is too short (one character or none) to place the answer: then the document is dropped."""
    return any(len(anchor) <= 1 for anchor in anchors)


def answer_position(document: UncutDocument) -> int:
    """The character of the stripped text at which the answer begins: 0 without anchors, -1 if nothing matches."""
    if not document.anchors:
        return 0
    found = answer_span(document)
    return found[0] if found else -1


def answer_span(document: UncutDocument) -> tuple[int, int] | None:
    """The first characters [start, end) of the stripped text that match an anchor, else the first alternative."""
    text = document.text.strip()
    found = [match.span() for anchor in document.anchors if (match := _match(text, anchor))]
    if found:
        return min(found)
    return next((match.span() for literal in document.alternatives if (match := _match(text, literal))), None)


# The paper's numbers were made with a decoding that removed these blanks (transformers did so by default until 4.45).
# They are removed whatever the installed version does, since prompts must not depend on it.
_BLANKS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def tidy(text: str) -> str:
    """`text` without the blanks before punctuation and contractions, as the original's decoding left it."""
    for blank in _BLANKS:
        text = text.replace(blank, blank.strip())
    return text


def span(answer: int, tokens: int, budget: int) -> tuple[int, int]:
    """The window [start, end) of `budget` tokens around token `answer` in a document of `tokens` tokens.

    Half of the budget goes before the answer, so even a document shorter than the budget loses its head when its answer
    comes late.
    """
    start = max(0, answer - budget // 2)
    return start, min(tokens, answer + (budget - (answer - start)))


def span_at(depth: float, answer: tuple[int, int], tokens: int, budget: int) -> tuple[int, int] | None:
    """The window [start, end) of `budget` tokens that has the answer's tokens at `depth`, None if there is none."""
    start = answer[0] - round(depth * (budget - (answer[1] - answer[0])))
    fits = answer[1] - answer[0] <= budget and start >= 0 and start + budget <= tokens
    return (start, start + budget) if fits else None


def cut(
    documents: Sequence[UncutDocument],
    tokenizer: Tokenizer,
    budgets: Sequence[Budget],
    progress: Callable[[int], object] = lambda done: None,
) -> list[tuple[Window | Dropped, ...]]:
    """For every document, in order, a window of each budget, or why there is none.

    progress: called with the number of documents that were cut since the last call.
    """
    windows: list[tuple[Window | Dropped, ...]] = []
    for chunk in _chunks(documents):
        fit = [document for document in chunk if not unfit(document.anchors)]
        cut_ones = iter(_cut_chunk(fit, tokenizer, budgets))
        dropped = (Dropped.SHORT_ANCHOR,) * len(budgets)
        windows += [dropped if unfit(document.anchors) else next(cut_ones) for document in chunk]
        progress(len(chunk))
    return windows


def _chunks(documents: Sequence[UncutDocument]) -> Iterator[Sequence[UncutDocument]]:
    begin = characters = 0
    for index, document in enumerate(documents):
        if index > begin and characters + len(document.text) > CHUNK_CHARACTERS:
            yield documents[begin:index]
            begin, characters = index, 0
        characters += len(document.text)
    if begin < len(documents):
        yield documents[begin:]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A document in tokens. answer: tokens before the answer; end: with the answer, or None where it is not counted."""

    source: UncutDocument
    ids: list[int]
    found: bool
    answer: int
    end: int | None

    def span(self, budget: Budget) -> tuple[int, int, int | None] | Dropped:
        """The window [start, end) and the tokens before the answer, if they are known."""
        if budget.depth is not None:
            if self.end is None:
                return Dropped.NOT_FOUND
            answer = self.answer, max(self.answer + 1, self.end)
            placed = span_at(budget.depth, answer, len(self.ids), budget.tokens)
            return (*placed, self.answer) if placed else Dropped.NO_ROOM
        answer_at = self.answer
        known = self.found and bool(self.source.anchors)
        if not self.found and self.source.tok_pos is not None and answer_at > budget.tokens:
            answer_at, known = self.source.tok_pos, True
        return (*span(answer_at, len(self.ids), budget.tokens), answer_at if known else None)


def _cut_chunk(
    documents: Sequence[UncutDocument], tokenizer: Tokenizer, budgets: Sequence[Budget]
) -> Iterator[tuple[Window | Dropped, ...]]:
    placed = any(budget.depth is not None for budget in budgets)
    for document in _encode(documents, tokenizer, with_ends=placed):
        spans = [document.span(budget) for budget in budgets]
        yield tuple(
            found
            if isinstance(found, Dropped)
            else Window(
                tidy(tokenizer.decode(document.ids[found[0] : found[1]])), len(document.ids), found[2], *found[:2]
            )
            for found in spans
        )


def _encode(documents: Sequence[UncutDocument], tokenizer: Tokenizer, *, with_ends: bool) -> Iterator[_Encoded]:
    texts = [document.text.strip() for document in documents]
    ends: list[int | None] = [None] * len(texts)
    if with_ends:
        spans = [_words_of(text, answer_span(document)) for text, document in zip(texts, documents, strict=True)]
        positions = [found[0] if found else -1 for found in spans]
        counted = tokenizer.encode_with_prefix(texts, [found[1] if found else 0 for found in spans])
        ends = [end if found else None for found, (_, end) in zip(spans, counted, strict=True)]
    else:
        positions = [answer_position(document) for document in documents]
    # The method is defined by Python's slice: position -1 means all of the text but its last character.
    encoded = tokenizer.encode_with_prefix(texts, positions)
    for document, position, (ids, answer), end in zip(documents, positions, encoded, ends, strict=True):
        yield _Encoded(document, ids, position != -1, answer, end)


def _words_of(text: str, found: tuple[int, int] | None) -> tuple[int, int] | None:
    """The whole words that the characters [start, end) are in, with the white space before them: no token spans both
    this and what is around it.
    """
    if found is None:
        return None
    start, end = found
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return len(text[:start].rstrip()), end
