"""Generated rows for training, by name: documents, set_disjointness, mqar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal

import numpy as np

from jrt_eval.data import mqar, set_disjointness
from jrt_eval.data.rows import Chunk, Text, load_tokenizer, paired_chunk
from jrt_eval.errors import UserError, nearest
from jrt_eval.settings import build
from jrt_eval.training.config import Synthetic

_CHUNK = 2000


def _checked(examples: Callable[..., object], *sizes: int) -> None:
    """Whether a generator takes these sizes."""
    try:
        examples(*sizes)
    except ValueError as error:
        raise UserError(f"synthetic.options: {error}") from None


@dataclass
class DocumentOptions:
    """Documents with questions, in read-once and read-twice prompts (jrt_eval.data.documents).

    twice: share of read-twice prompts; asked: of prompts with the question in front and the document once; marked: of
    such rows whose answers are the ends of the sentences (`documents.marked_text`), with marked_answers the usual one
    as well; questions: most questions after a read-once prompt (the others have the one they name in front). The rest
    is `Shape`.
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
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"synthetic.options: {name} is a share, from 0 to 1, got {getattr(self, name)}")
        if (shares := self.twice + self.asked + self.marked) > 1 + 1e-9:
            raise UserError(
                f"synthetic.options: twice, asked and marked are shares of all rows, and sum up to {shares:g}"
            )
        if not 1 <= self.facts[0] <= self.facts[1]:
            raise UserError(f"synthetic.options: facts is [fewest, most], at least 1, got {list(self.facts)}")
        if self.questions < 1:
            raise UserError(f"synthetic.options: questions must be at least 1, got {self.questions}")


@dataclass
class SetOptions:
    """Set disjointness: sizes (|A|, |B|), taken in turn."""

    sizes: tuple[tuple[int, int], ...] = ()
    vocabulary: int = 2048

    def __post_init__(self) -> None:
        if not self.sizes or min(map(min, self.sizes)) < 1:
            raise UserError("synthetic.options: sizes is a list of pairs such as [[4, 16], [16, 4]], each at least 1")
        for first, second in self.sizes:
            _checked(set_disjointness.examples, first, second, 0, 0, self.vocabulary)


@dataclass
class MqarOptions:
    """Multi-query associative recall: `pairs` keys in sequences of `length` tokens."""

    length: int = 256
    pairs: int = 16
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        _checked(mqar.examples, self.length, self.pairs, 0, 0, self.vocabulary)


_OPTIONS: dict[str, type] = {"documents": DocumentOptions, "set_disjointness": SetOptions, "mqar": MqarOptions}


def options(synthetic: Synthetic) -> Any:
    """The options of a synthetic source, checked."""
    if synthetic.name not in _OPTIONS:
        known = list(_OPTIONS)
        raise UserError(
            f"synthetic.name: unknown source {synthetic.name!r}{nearest(synthetic.name, known)}; known: {', '.join(known)}"
        )
    return build(_OPTIONS[synthetic.name], synthetic.options, "synthetic.options")


def chunks(synthetic: Synthetic, tokenizer: str | None, longest: int) -> Iterator[Chunk]:
    """All rows of a synthetic source, in a fixed order; `longest` is the most tokens that a row may have, less one."""
    chosen = options(synthetic)
    if synthetic.rows < 1:
        raise UserError(f"no data: synthetic.rows is {synthetic.rows}")
    starts = range(0, synthetic.rows, _CHUNK)
    if synthetic.name == "set_disjointness":
        for number, (first, second) in enumerate(chosen.sizes):
            count = synthetic.rows // len(chosen.sizes) + (number < synthetic.rows % len(chosen.sizes))
            yield _sets(first, second, count, synthetic.seed, chosen.vocabulary)
        return
    if synthetic.name == "mqar":
        for start in starts:
            count = min(_CHUNK, synthetic.rows - start)
            yield _mqar(chosen, count, synthetic.seed + start)
        return
    assert tokenizer is not None
    work = partial(_documents, chosen, synthetic.seed, synthetic.rows, tokenizer, longest + 1)
    processes = min(len(starts), len(os.sched_getaffinity(0)))
    if processes < 2:
        yield from map(work, starts)
        return
    # Workers are started afresh: a fork of a process with threads (torch, tokenizers) may hang.
    from multiprocessing import get_context

    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(work, starts)


def _documents(chosen: DocumentOptions, seed: int, rows: int, tokenizer: str, longest: int, start: int) -> Chunk:
    from jrt_eval.data.documents import Shape, make_document, marked_text, training_text

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shape = Shape(chosen.facts, chosen.filler, chosen.rival)
    texts: list[Text] = []
    for index in range(start, min(start + _CHUNK, rows)):
        rng = Random(f"row/{seed}/{index}")
        document = make_document(chosen.split, seed, index, shape)
        draw = rng.random()
        if chosen.twice + chosen.asked <= draw < chosen.twice + chosen.asked + chosen.marked:
            texts.append((marked_text(document, rng, answered=chosen.marked_answers), []))
            continue
        head = "twice" if draw < chosen.twice else "asked" if draw < chosen.twice + chosen.asked else "once"
        texts.append(training_text(document, rng, head, chosen.questions if head == "once" else 1))
    return paired_chunk(load_tokenizer(tokenizer), texts, longest)


def _sets(first: int, second: int, count: int, seed: int, vocabulary: int) -> Chunk:
    inputs, answers = set_disjointness.examples(first, second, count, seed, vocabulary)
    tokens = np.concatenate([inputs, answers[:, None]], axis=1)
    flags = np.zeros_like(tokens, dtype=np.uint8)
    flags[:, -1] = 1
    return _rectangle(tokens, flags, inputs.shape[1])


def _mqar(chosen: MqarOptions, count: int, seed: int) -> Chunk:
    # A next-token row: at a query's position comes its value, so the value follows its key here as in the pairs.
    inputs, labels = mqar.examples(chosen.length, chosen.pairs, count, seed, chosen.vocabulary)
    flags = np.zeros_like(inputs, dtype=np.uint8)
    at = labels[:, :-1] >= 0
    inputs[:, 1:][at] = labels[:, :-1][at]
    flags[:, 1:][at] = 1
    return _rectangle(inputs, flags, 2 * chosen.pairs)


def _rectangle(tokens: Any, flags: Any, prompt: int) -> Chunk:
    rows, length = tokens.shape
    return Chunk(tokens.reshape(-1), flags.reshape(-1), np.full(rows, length), np.full(rows, prompt))
