"""jrt_set_disjointness and jrt_mqar as lm-eval loads and scores them."""

from __future__ import annotations

from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.plugin import task_folder


def load(name: str, **metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    return get_task_dict([name], manager)[name]


@pytest.mark.parametrize(("first", "second"), [(2, 9), (9, 2)])
def test_sizes_and_order_come_through_metadata(first: int, second: int) -> None:
    task = load("jrt_set_disjointness", first=first, second=second, documents=5, pretrained="x")
    docs = list(task.test_docs())
    assert len(docs) == 5
    for doc in docs:
        lines = task.doc_to_text(doc).split("\n")
        a, b = (set(line.split()[1:]) for line in lines[:2])
        assert (len(a), len(b)) == (first, second)
        assert a & b == {doc["answer"]}


def test_mqar_asks_for_a_value_that_was_told() -> None:
    task = load("jrt_mqar", pairs=4, length=32, documents=5)
    for doc in task.test_docs():
        *told, asked = task.doc_to_text(doc).split(", ")
        assert dict(pair.split() for pair in told[:4])[asked] == doc["answer"]
        assert len(told) == 7


@pytest.mark.parametrize("name", ["jrt_set_disjointness", "jrt_mqar"])
def test_answers_are_scored(name: str) -> None:
    task = load(name, documents=1)
    (doc,) = task.test_docs()
    assert task.process_results(doc, [f" {doc['answer']} w1"])["exact_match"] == 1
    assert task.process_results(doc, [" w99999"])["exact_match"] == 0


def test_bad_metadata() -> None:
    for name, metadata, says in [
        ("jrt_set_disjointness", {"frist": 3}, "did you mean 'first'"),
        ("jrt_set_disjointness", {"first": "many"}, "an integer, got 'many'"),
        ("jrt_set_disjointness", {"first": 0}, "at least 1"),
        ("jrt_set_disjointness", {"first": 400}, "larger vocabulary"),
        ("jrt_mqar", {"pairs": 40}, "at least 160 tokens"),
    ]:
        with pytest.raises(UserError) as raised:
            load(name, **metadata)
        assert says in str(raised.value)
