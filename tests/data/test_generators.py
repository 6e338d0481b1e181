"""What the generators promise: set disjointness, MQAR, documents."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from jrt_eval.data import documents, mqar
from jrt_eval.data import set_disjointness as sets
from jrt_eval.data.cache import open_rows
from jrt_eval.data.config import Data, Synthetic
from jrt_eval.data.rows import IGNORED_LABEL
from jrt_eval.data.synthetic import options_of, synthetic_chunks
from jrt_eval.data.text import load_tokenizer
from jrt_eval.errors import UserError


@pytest.mark.parametrize(("first", "second"), [(4, 16), (16, 4), (1, 32), (64, 16)])
def test_sets_share_exactly_the_answer(first: int, second: int) -> None:
    inputs, answers = sets.examples(first, second, 50, seed=3, vocabulary=200)
    assert inputs.shape == (50, first + second + 3)
    assert (inputs[:, [0, first + 1, -1]] == [sets.PREFIX, sets.BETWEEN, sets.ANSWER]).all()
    for row, answer in zip(inputs, answers, strict=True):
        a, b = set(row[1 : first + 1].tolist()), set(row[first + 2 : -1].tolist())
        assert a & b == {answer}
        assert (len(a), len(b)) == (first, second)
        assert min(a | b) >= sets.RESERVED
    assert sets.labels(inputs, answers)[:, -1].tolist() == answers.tolist()
    assert (sets.labels(inputs, answers)[:, :-1] == IGNORED_LABEL).all()


def test_sets_depend_on_the_seed_alone() -> None:
    one, two, other = (sets.examples(4, 8, 10, seed, 64)[0] for seed in (0, 0, 1))
    assert (one == two).all()
    assert (one != other).any()


def test_a_set_may_not_be_larger_than_half_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="half a vocabulary of 36: 16 tokens"):
        sets.examples(17, 4, 1, 0, 36)


def test_mixtures_are_the_papers() -> None:
    assert len(sets.TRAINING) == 12
    assert len(sets.EVALUATION) == 20
    assert {tuple(reversed(pair)) for pair in sets.TRAINING} == set(sets.TRAINING)  # both orders of each pair
    assert {tuple(reversed(pair)) for pair in sets.EVALUATION} == set(sets.EVALUATION)


def test_mqar_asks_for_the_value_of_each_key() -> None:
    inputs, labels = mqar.examples(64, 8, 40, seed=0, vocabulary=128)
    for row, targets in zip(inputs, labels, strict=True):
        values = dict(zip(row[0:16:2].tolist(), row[1:16:2].tolist(), strict=True))
        asked = np.flatnonzero(targets != IGNORED_LABEL)
        assert (asked >= 16).all()
        assert {int(row[i]): int(targets[i]) for i in asked} == values
        assert max(values) < 64 <= min(values.values())
    with pytest.raises(ValueError, match="at least 32 tokens"):
        mqar.examples(31, 8, 1, 0)


def test_documents_tell_their_facts_and_depend_on_the_seed_alone() -> None:
    for index in range(60):
        document = documents.make_document("train", 5, index)
        assert document == documents.make_document("train", 5, index)
        for value in document.facts.values():
            assert value in document.text
    assert document != documents.make_document("train", 6, index)


def test_no_fact_belongs_to_both_splits() -> None:
    for split, other in (("train", "evaluation"), ("evaluation", "train")):
        for index in range(60):
            document = documents.make_document(split, 0, index)  # type: ignore[arg-type]
            for key, value in document.facts.items():
                assert documents.belongs_to(split, document.entity, key, value)  # type: ignore[arg-type]
                assert not documents.belongs_to(other, document.entity, key, value)  # type: ignore[arg-type]


def test_prompts_have_the_read_twice_form() -> None:
    assert documents.prompt("A b.", "Product") == "A b. Product:"
    assert documents.prompt("A b.", "Logo", asked=True, readings=2) == "Information about Logo. A b.\nA b. Logo:"


def test_marked_text_asks_about_every_sentence_that_names_a_value() -> None:
    shape = documents.DocumentShape(facts=(5, 9), filler=0.9, rival=0.9)
    for index in range(40):
        document = documents.make_document("train", 5, index, shape)
        parts = documents.marked_text(document, Random(index))
        marks = [(text, weight) for text, weight in parts if weight]
        ends = [before for (before, _), (_, weight) in itertools.pairwise(parts) if weight]
        asked = parts[0][0].removeprefix("Information about ").split(".")[0]
        (number,) = (i for i, (mark, _) in enumerate(marks) if mark == "!")
        assert f" {asked} " in ends[number]
        assert ends[number].endswith(f" {document.facts[asked]}")
        assert marks[number][1] == sum(weight for mark, weight in marks if mark == ".")
        assert len(marks) == sum(sentence.key is not None for sentence in document.sentences)
        whole = "".join(text for text, _ in parts).removeprefix(f"Information about {asked}. ")
        assert document.text.startswith(whole.replace("!", "."))
        answered = documents.marked_text(document, Random(index), answered=True)
        assert answered[: len(parts)] == parts
        assert answered[-2][0].endswith(f" {asked}:")
        assert answered[-1][0] == f" {document.facts[asked]}\n"


def test_a_share_of_marked_rows_changes_no_other_row() -> None:
    def rows(**options: float) -> list[tuple[list[int], list[int]]]:
        synthetic = Synthetic("documents", 40, 3, {"twice": 0.3, "asked": 0.3, "facts": [3, 5], **options})
        (chunk,) = synthetic_chunks(synthetic, "mini", 600)
        assert len(chunk.lengths) == 40
        ends = np.cumsum(chunk.lengths)
        spans = zip(ends - chunk.lengths, ends, strict=True)
        return [(chunk.tokens[a:b].tolist(), chunk.flags[a:b].tolist()) for a, b in spans]

    plain, some = rows(), rows(marked=0.2)
    changed = [new for old, new in zip(plain, some, strict=True) if old != new]
    assert 0 < len(changed) < 20
    marks = {load_tokenizer("mini")(text)["input_ids"][0] for text in ".!"}
    for tokens, flags in changed:
        assert {token for token, flag in zip(tokens, flags, strict=True) if flag} == marks


def test_shares_of_more_than_all_rows_are_refused(tmp_path: Path) -> None:
    options_of(Synthetic(name="documents", rows=1, options={"twice": 0.4, "asked": 0.3, "marked": 0.3}))
    with pytest.raises(UserError, match=r"shares of all rows, but their sum is 1\.4"):
        open_rows(
            Data(lengths=[64], synthetic=Synthetic("documents", 1, options={"twice": 0.9, "marked": 0.5})),
            "mini",
            tmp_path,
        )
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("documents", {"twice": "abc"}, "twice: expected a number, got 'abc'"),
        ("documents", {"twice": -0.5}, "twice is a share"),
        ("documents", {"filler": 2}, "filler is a share"),
        ("documents", {"facts": ["a", "b"]}, "facts: expected an integer, got 'a'"),
        ("documents", {"facts": [5]}, "facts: expected a list of 2"),
        ("documents", {"facts": 5}, "facts: expected a list, got 5"),
        ("documents", {"facts": [9, 5]}, r"facts is \[fewest, most\]"),
        ("documents", {"questions": 0}, "questions must be at least 1"),
        ("documents", {"split": "trian"}, "expected one of train, evaluation, got 'trian' .did you mean 'train'"),
        ("documents", {"twise": 0.5}, "unknown key 'twise' .did you mean 'twice'"),
        ("mqar", {"pairs": 100}, "100 pairs need a length of at least 400"),
        ("mqar", {"pairs": "x"}, "pairs: expected an integer"),
        ("set_disjointness", {}, "sizes is a list of pairs"),
        ("set_disjointness", {"sizes": [[4, 0]]}, "sizes is a list of pairs"),
        ("set_disjointness", {"sizes": [[4, 9000]]}, "a set of 9000 does not fit"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        options_of(Synthetic(name=name, rows=1, options=given))
