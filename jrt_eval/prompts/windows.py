"""Windows: a document cut to a budget of tokens around its answer.

The window is centred on the gold answer, which only an oracle can do. It makes models with a short context comparable on
documents that are longer than they can read, and says nothing about how such a document would be cut in use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.prompts.tokenization import Tokenizer

# Documents are tokenized in chunks of this many characters, which bounds memory: a token costs the tokenizer 100 bytes.
CHUNK_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Budget:
    """The length of a window: `context_length` tokens less the `answer_length` that are kept for the answer."""

    context_length: int
    answer_length: int = 50

    @property
    def tokens(self) -> int:
        return self.context_length - self.answer_length

    @staticmethod
    def of(context_length: Any, answer_length: Any) -> Budget | None:
        """The budget that the metadata ask for; None (no window) where `context_length` is null.

        Raises `UserError` unless both are integers that leave at least one token for the document.
        """
        if context_length is None or str(context_length).lower() in ("none", "null"):
            return None
        context_length = _integer("context_length", context_length)
        answer_length = _integer("answer_length", answer_length)
        if answer_length < 0:
            raise UserError(f"answer_length is {answer_length}: it must be 0 or more")
        if context_length <= answer_length:
            raise UserError(
                f"context_length is {context_length}: it must be more than answer_length ({answer_length}), "
                "or null for whole documents"
            )
        return Budget(context_length, answer_length)


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
    match = re.search(re.escape(literal), text, re.IGNORECASE)
    return match.start() if match else -1


def unfit(anchors: Sequence[str]) -> bool:
    """Whether an anchor is too short (one character or none) to place the answer: then the document is dropped."""
    return any(len(anchor) <= 1 for anchor in anchors)


def answer_position(document: UncutDocument) -> int:
    """The character of the stripped text at which the answer begins: 0 without anchors, -1 if nothing matches."""
    if not document.anchors:
        return 0
    text = document.text.strip()
    found = [start for start in (find(text, anchor) for anchor in document.anchors) if start >= 0]
    if found:
        return min(found)
    for alternative in document.alternatives:
        if (start := find(text, alternative)) >= 0:
            return start
    return -1


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


def cut(
    documents: Sequence[UncutDocument],
    tokenizer: Tokenizer,
    budget: Budget,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Window | None]:
    """A window for every document, in order; None for one that is dropped (`unfit`).

    progress: called with the number of documents that were cut since the last call.
    """
    windows: list[Window | None] = []
    for chunk in _chunks(documents):
        fit = [document for document in chunk if not unfit(document.anchors)]
        cut_ones = iter(_cut_chunk(fit, tokenizer, budget))
        windows += [None if unfit(document.anchors) else next(cut_ones) for document in chunk]
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


def _cut_chunk(documents: Sequence[UncutDocument], tokenizer: Tokenizer, budget: Budget) -> Iterator[Window]:
    texts = [document.text.strip() for document in documents]
    positions = [answer_position(document) for document in documents]
    # The method is defined by Python's slice: position -1 means all of the text but its last character.
    encoded = tokenizer.encode_with_prefix(texts, positions)
    for document, position, (ids, answer) in zip(documents, positions, encoded, strict=True):
        known = bool(document.anchors) and position >= 0
        if position == -1 and document.tok_pos is not None and answer > budget.tokens:
            answer, known = document.tok_pos, True
        start, end = span(answer, len(ids), budget.tokens)
        yield Window(tidy(tokenizer.decode(ids[start:end])), len(ids), answer if known else None, start, end)
