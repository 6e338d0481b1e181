"""Generated rows for training, by name: documents, set_disjointness, mqar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Any, Literal

import numpy as np

from jrt_eval.data import mqar, set_disjointness
from jrt_eval.data.config import Synthetic
from jrt_eval.data.rows import RowChunk
from jrt_eval.data.text import RowText, load_tokenizer, paired_chunk
from jrt_eval.errors import UserError, nearest
from jrt_eval.processes import safe_multiprocessing
from jrt_eval.settings import build

_ROWS_PER_CHUNK = 2000
_LARGEST = 1 << 20  # vocabulary and lengths: beyond this a generator's arrays would fill the memory


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(f"synthetic.options: {message}")


def _check_sizes(examples: Callable[..., object], *sizes: int) -> None:
    """Raise `UserError` unless the generator accepts these sizes."""
    _check(max(sizes) <= _LARGEST, f"a size of {max(sizes)} is larger than {_LARGEST}")
    try:
        examples(*sizes)
    except ValueError as error:
        raise UserError(f"synthetic.options: {error}") from None


@dataclass
class DocumentOptions:
    """Documents with questions, in read-once and read-twice prompts (`jrt_eval.data.documents`).

    split: which facts the documents state; no fact is in both splits.
    twice: share of rows with a read-twice prompt.
    asked: share of rows with the question first and the document once.
    marked: share of rows of the form `documents.marked_text`; marked_answers: the usual question and answer follow.
    questions: the most questions after a read-once prompt; the other prompts have one.
    facts, filler, rival: see `documents.DocumentShape`.
    """

    split: Literal["train", "evaluation"] = "train"
    twice: float = 0.5
    asked: float = 0.0
    marked: float = 0.0
    marked_answers: bool = False
    questions: int = 12
    facts: tuple[int, int] = (6, 28)
    filler: float = 0.4
    rival: float = 0.2

    def __post_init__(self) -> None:
        for name in ("twice", "asked", "marked", "filler", "rival"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        shares = self.twice + self.asked + self.marked
        _check(shares <= 1 + 1e-9, f"twice, asked and marked are shares of all rows, but their sum is {shares:g}")
        _check(1 <= self.facts[0] <= self.facts[1], f"facts is [fewest, most], at least 1, got {list(self.facts)}")
        _check(self.questions >= 1, f"questions must be at least 1, got {self.questions}")


@dataclass
class SetOptions:
    """Set disjointness: sizes (|A|, |B|), each with an equal share of the rows."""

    sizes: tuple[tuple[int, int], ...] = ()
    vocabulary: int = set_disjointness.VOCABULARY

    def __post_init__(self) -> None:
        smallest = min((size for pair in self.sizes for size in pair), default=0)
        _check(smallest >= 1, "sizes is a list of pairs such as [[4, 16], [16, 4]], each at least 1")
        for first, second in self.sizes:
            _check_sizes(set_disjointness.examples, first, second, 0, 0, self.vocabulary)


@dataclass
class MqarOptions:
    """Multi-query associative recall: `pairs` keys in sequences of `length` tokens."""

    length: int = 256
    pairs: int = 16
    vocabulary: int = mqar.VOCABULARY

    def __post_init__(self) -> None:
        _check_sizes(mqar.examples, self.length, self.pairs, 0, 0, self.vocabulary)


_OPTIONS: dict[str, type] = {"documents": DocumentOptions, "set_disjointness": SetOptions, "mqar": MqarOptions}


def options_of(synthetic: Synthetic) -> Any:
    """The checked options of a generator: an instance of one of the classes above."""
    if synthetic.name not in _OPTIONS:
        known = list(_OPTIONS)
        raise UserError(
            f"synthetic.name: unknown generator {synthetic.name!r}{nearest(synthetic.name, known)}; known: {', '.join(known)}"
        )
    if not 1 <= synthetic.rows <= 10**9:
        raise UserError(f"no data: synthetic.rows must be from 1 to 10^9, got {synthetic.rows}")
    if synthetic.seed < 0:
        raise UserError(f"synthetic.seed: must be at least 0, got {synthetic.seed}")
    return build(_OPTIONS[synthetic.name], synthetic.options, "synthetic.options")


def synthetic_chunks(synthetic: Synthetic, tokenizer: str | None, longest: int) -> Iterator[RowChunk]:
    """All rows of a generator, in a fixed order; a row has at most `longest` + 1 tokens."""
    chosen = options_of(synthetic)
    starts = range(0, synthetic.rows, _ROWS_PER_CHUNK)
    if synthetic.name == "set_disjointness":
        for number, (first, second) in enumerate(chosen.sizes):
            count = synthetic.rows // len(chosen.sizes) + (number < synthetic.rows % len(chosen.sizes))
            yield _sets(first, second, count, synthetic.seed, chosen.vocabulary)
        return
    if synthetic.name == "mqar":
        for start in starts:
            count = min(_ROWS_PER_CHUNK, synthetic.rows - start)
            yield _mqar(chosen, count, synthetic.seed + start)
        return
    assert tokenizer is not None
    work = partial(_documents, chosen, synthetic.seed, synthetic.rows, tokenizer, longest + 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(len(starts), cores)
    if processes < 2:
        yield from map(work, starts)
        return
    # Spawned, since a fork of a process with threads (torch, tokenizers) may hang.
    with safe_multiprocessing(), get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(work, starts)


def _documents(chosen: DocumentOptions, seed: int, rows: int, tokenizer: str, longest: int, start: int) -> RowChunk:
    from jrt_eval.data.documents import DocumentShape, make_document, marked_text, training_text

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shape = DocumentShape(chosen.facts, chosen.filler, chosen.rival)
    texts: list[RowText] = []
    for index in range(start, min(start + _ROWS_PER_CHUNK, rows)):
        rng = Random(f"row/{seed}/{index}")
        document = make_document(chosen.split, seed, index, shape)
        draw = rng.random()
        if chosen.twice + chosen.asked <= draw < chosen.twice + chosen.asked + chosen.marked:
            texts.append((marked_text(document, rng, answered=chosen.marked_answers), []))
            continue
        head = "twice" if draw < chosen.twice else "asked" if draw < chosen.twice + chosen.asked else "once"
        texts.append(training_text(document, rng, head, chosen.questions if head == "once" else 1))
    return paired_chunk(load_tokenizer(tokenizer), texts, longest)


def _sets(first: int, second: int, count: int, seed: int, vocabulary: int) -> RowChunk:
    inputs, answers = set_disjointness.examples(first, second, count, seed, vocabulary)
    tokens = np.concatenate([inputs, answers[:, None]], axis=1)
    flags = np.zeros_like(tokens, dtype=np.uint8)
    flags[:, -1] = 1
    return _rectangle(tokens, flags, inputs.shape[1])


def _mqar(chosen: MqarOptions, count: int, seed: int) -> RowChunk:
    # In a next-token row the value follows its key, so it replaces the token after the query.
    inputs, labels = mqar.examples(chosen.length, chosen.pairs, count, seed, chosen.vocabulary)
    flags = np.zeros_like(inputs, dtype=np.uint8)
    at = labels[:, :-1] >= 0
    inputs[:, 1:][at] = labels[:, :-1][at]
    flags[:, 1:][at] = 1
    return _rectangle(inputs, flags, 2 * chosen.pairs)


def _rectangle(tokens: Any, flags: Any, prompt: int) -> RowChunk:
    rows, length = tokens.shape
    return RowChunk(tokens.reshape(-1), flags.reshape(-1), np.full(rows, length), np.full(rows, prompt))
