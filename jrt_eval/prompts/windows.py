"""Windows: a document cut to a budget of tokens around its answer.

The cut is an oracle's, since it is centred on the gold answer: it makes short-context models comparable on documents
that are longer than they can read, and says nothing about how such a document would be cut in use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.prompts.tokenization import Tokenizer

# Documents are tokenised so many characters at a time, which bounds memory: a token costs the tokenizer 100 bytes.
CHUNK_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Budget:
    """How long a window is: `context_length` tokens less the `answer_length` that are kept for the answer."""

    context_length: int
    answer_length: int = 50

    @property
    def tokens(self) -> int:
        return self.context_length - self.answer_length

    @staticmethod
    def of(context_length: Any, answer_length: Any) -> Budget | None:
        """The budget that task metadata ask for; None (no window) where `context_length` is null.

        Raises `UserError` for what is no whole number, or leaves no token for the document.
        """
        if context_length is None or str(context_length).lower() in ("none", "null"):
            return None
        context_length = _whole_number("context_length", context_length)
        answer_length = _whole_number("answer_length", answer_length)
        if answer_length < 0:
            raise UserError(f"answer_length is {answer_length}: it must be 0 or more")
        if context_length <= answer_length:
            raise UserError(
                f"context_length is {context_length}: it must be more than answer_length ({answer_length}), "
                "or null for whole documents"
            )
        return Budget(context_length, answer_length)


def _whole_number(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # lm_eval reads key=-3 on the command line as -3.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} is {value!r}: it must be a whole number of tokens")
    return value


@dataclass(frozen=True, slots=True)
class Source:
    """A document to cut: its text, where its answer is looked for, and where else.

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


def answer_position(source: Source) -> int:
    """The character at which the answer stands in the stripped text: 0 without anchors, -1 if nothing matches."""
    if not source.anchors:
        return 0
    text = source.text.strip()
    found = [start for start in (find(text, anchor) for anchor in source.anchors) if start >= 0]
    if found:
        return min(found)
    for alternative in source.alternatives:
        if (start := find(text, alternative)) >= 0:
            return start
    return -1


# What decoding did to blanks when the paper's numbers were made (and transformers did by default until 4.45): applied
# whatever the installed version or a tokenizer's configuration says, since prompts must not depend on those.
_BLANKS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def tidy(text: str) -> str:
    """`text` without the blanks before punctuation and contractions, as the original's decoding left it."""
    for blank in _BLANKS:
        text = text.replace(blank, blank.strip())
    return text


def span(answer: int, tokens: int, budget: int) -> tuple[int, int]:
    """The window [start, end) of `budget` tokens around token `answer` in a document of `tokens` tokens.

    Half of the budget goes before the answer, so a document shorter than that loses its head if its answer stands late.
    """
    start = max(0, answer - budget // 2)
    return start, min(tokens, answer + (budget - (answer - start)))


def cut(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    budget: Budget,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Window | None]:
    """A window for every source, in order; None for one that is dropped (`unfit`). `progress` gets documents done."""
    windows: list[Window | None] = []
    for chunk in _chunks(sources):
        windows += _cut_chunk(chunk, tokenizer, budget)
        progress(len(chunk))
    return windows


def _chunks(sources: Sequence[Source]) -> Iterator[Sequence[Source]]:
    begin = characters = 0
    for index, source in enumerate(sources):
        if index > begin and characters + len(source.text) > CHUNK_CHARACTERS:
            yield sources[begin:index]
            begin, characters = index, 0
        characters += len(source.text)
    if begin < len(sources):
        yield sources[begin:]


def _cut_chunk(sources: Sequence[Source], tokenizer: Tokenizer, budget: Budget) -> list[Window | None]:
    keep = [source for source in sources if not unfit(source.anchors)]
    texts = [source.text.strip() for source in keep]
    positions = [answer_position(source) for source in keep]
    # Python's slice is the definition here: position -1 means all of the text but its last character.
    counted = iter(tokenizer.encode_with_prefix(texts, positions))
    n = budget.tokens
    result: list[Window | None] = []
    fit = iter(zip(keep, positions, strict=True))
    for source in sources:
        if unfit(source.anchors):
            result.append(None)
            continue
        (_, position), (ids, answer) = next(fit), next(counted)
        known = bool(source.anchors) and position >= 0
        if position == -1 and source.tok_pos is not None and answer > n:
            answer, known = source.tok_pos, True
        start, end = span(answer, len(ids), n)
        result.append(Window(tidy(tokenizer.decode(ids[start:end])), len(ids), answer if known else None, start, end))
    return result
