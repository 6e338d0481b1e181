"""`jrt_needle`: a key-value fact between the sentences of real text, at a chosen depth in a text of a chosen length.

The text is the pages of a data set, one after the other, from a page of its own for each fact. It ends before the sentence
that exceeds the budget, and a shorter text is the head of a longer one. The fact is about a made-up entity
(`jrt_eval.data.documents`) that the text does not mention, and its value does not occur in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from jrt_eval.data.documents import make_document
from jrt_eval.errors import UserError
from jrt_eval.prompts import documents as docs
from jrt_eval.prompts.metadata import count_of
from jrt_eval.prompts.rows import SourceRows, check_fields, check_text
from jrt_eval.prompts.task import ReadTwiceTask
from jrt_eval.prompts.tokenization import Tokenizer
from jrt_eval.prompts.windows import Budget

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LONGEST_SENTENCE = 400  # characters; tables have no full stops
_SHORTEST_VALUE = 4  # characters; a shorter one is too easily part of another word
DOCUMENTS = 20  # facts per length and depth


@dataclass(frozen=True)
class Fact:
    """One fact about a made-up entity."""

    entity: str
    key: str
    value: str

    @property
    def cue(self) -> str:
        return f"The {self.key} of {self.entity} is"

    @property
    def sentence(self) -> str:
        return f"{self.cue} {self.value}."

    @property
    def question(self) -> str:
        return f"What is the {self.key} of {self.entity}?"


def facts(index: int) -> Iterator[Fact]:
    """Facts number `index` to choose from: about one entity, in an order of their own."""
    document = make_document("evaluation", 0, index)
    pairs = [pair for pair in document.facts.items() if len(pair[1]) >= _SHORTEST_VALUE]
    Random(f"needle/{index}").shuffle(pairs)
    return (Fact(document.entity, key, value) for key, value in pairs)


class Haystack:
    """Sentences of the pages of a data set, with their lengths in tokens."""

    def __init__(self, pages: list[str], tokenizer: Tokenizer) -> None:
        self._pages = pages
        self._tokenizer = tokenizer
        self._sentences: dict[int, list[tuple[str, int]]] = {}

    def head(self, page: int, tokens: int) -> list[tuple[str, int]]:
        """The sentences from the beginning of a page, as many as `tokens` tokens hold, over the following pages. After the
        last page comes the first.
        """
        chosen: list[tuple[str, int]] = []
        room = tokens
        while True:
            for sentence in self._page(page % len(self._pages)):
                if sentence[1] > room:
                    return chosen
                chosen.append(sentence)
                room -= sentence[1]
            page += 1

    def _page(self, page: int) -> list[tuple[str, int]]:
        if page not in self._sentences:
            texts = list(_sentences(self._pages[page]))
            counts = self._tokenizer.count([f" {text}" for text in texts])
            self._sentences[page] = list(zip(texts, counts, strict=True))
        return self._sentences[page]


def _sentences(page: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(page):
        line: list[str] = []
        size = 0
        for word in sentence.split():
            if size + len(word) > _LONGEST_SENTENCE and line:
                yield " ".join(line)
                line, size = [], 0
            line.append(word)
            size += len(word) + 1
        if line:
            yield " ".join(line)


def hide(fact: Fact, sentences: list[tuple[str, int]], depth: float) -> tuple[str, int]:
    """The text with the fact at the boundary between sentences that is nearest to `depth`; tokens before the fact."""
    before = [0, *accumulate(tokens for _, tokens in sentences)]
    wanted = depth * before[-1]
    place = bisect_left(before, wanted)
    if place and wanted - before[place - 1] < before[place] - wanted:
        place -= 1
    texts = [text for text, _ in sentences]
    return " ".join([*texts[:place], fact.sentence, *texts[place:]]), before[place]


class NeedleTask(ReadTwiceTask):
    """Facts in real text: metadata `documents` facts for each `context_length` and `answer_depth`."""

    def _documents(self, rows: SourceRows, budgets: tuple[Budget, ...]) -> tuple[list[dict[str, Any]], docs.Report]:
        name = self.config.task
        if self._tokenizer is None or not budgets or any(budget.depth is None for budget in budgets):
            raise UserError(f"task {name}: a fact has a place: give context_length and answer_depth")
        haystack = Haystack(_pages(rows, self.spec.text), self._tokenizer)
        number = count_of(self.config.metadata, "documents", name) or DOCUMENTS
        documents = [document for index in range(number) for document in self._cells(haystack, index, budgets)]
        return documents, docs.Report(number)

    def _cells(self, haystack: Haystack, index: int, budgets: tuple[Budget, ...]) -> Iterator[dict[str, Any]]:
        """Fact number `index` in texts of every length and at every depth."""
        assert self._tokenizer is not None
        longest = " ".join(text for text, _ in haystack.head(index, max(budget.tokens for budget in budgets))).lower()
        fact = next((f for f in facts(index) if not _mentions(longest, f)), None)
        if fact is None:
            raise UserError(f"task {self.config.task}: the text mentions every value of fact {index}: lower documents")
        (length,) = self._tokenizer.count([f" {fact.sentence}"])
        for budget in budgets:
            sentences = haystack.head(index, budget.tokens - length)
            if not sentences:
                raise UserError(
                    f"task {self.config.task}: context_length {budget.context_length} has no room for the first sentence of "
                    "a page: raise it"
                )
            text, before = hide(fact, sentences, budget.depth or 0.0)
            row = {
                self.spec.text: text,
                "question": fact.question,
                "cue": fact.cue,
                "answer": fact.value,
                "fact": index,
            }
            (document,), _ = docs.prepare(SourceRows(f"fact {index}", [row], ()), self.spec, (), ())
            tokens = {
                "jrt_document_tokens": length + sum(count for _, count in sentences),
                "jrt_answer_position": before,
            }
            yield {**document, **tokens, "jrt_row": index, **docs.cell_columns(budget)}


def _mentions(text: str, fact: Fact) -> bool:
    return fact.value.lower() in text or fact.entity.lower() in text


def _pages(rows: SourceRows, field: str) -> list[str]:
    """The distinct texts of a data set. Raises `UserError` where there are none."""
    check_fields(rows, [field])
    for index, row in enumerate(rows.rows):
        check_text(rows.place(index), field, row[field])
    pages = [page for page in dict.fromkeys(str(row[field]) for row in rows.rows) if page.strip()]
    if not pages:
        raise UserError(f"{rows.origin}: no text in the field {field!r}")
    return pages
