"""Windows over a grid of lengths and depths, and facts in real text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.prompts.needle import Fact, hide


@pytest.fixture(scope="module")
def pages(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_dir with a few real pages as based_nq_2048."""
    source = shared / "data" / "hub-large" / "based_nq_2048" / "validation.jsonl"
    if not source.is_file():
        pytest.skip(f"no {source}")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "based_nq_2048").mkdir()
    lines = source.read_text().splitlines()[40:70]
    (folder / "based_nq_2048" / "validation.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def row(number: int, before: int, answer: str, after: int, **more: Any) -> dict[str, Any]:
    question = f"What is number {number}?"
    return {"id": str(number), "context": f"{'word ' * before}{answer}{' more' * after}", "question": f"{question} It is",
            "orig_question": question, "answers": [answer], "tok_pos": 0, **more}  # fmt: skip


def test_real_pages_at_every_length_and_depth(pages: str, shared: Path, load: Callable[..., Any]) -> None:
    metadata = {"data_dir": pages, "tokenizer": str(shared / "data" / "gpt2")}
    once, twice = load("jrt_depth_nq", **metadata), load("jrt_depth_nq_twice", **metadata)
    by_cell: dict[Any, set[int]] = defaultdict(set)
    for doc in once.eval_docs:
        by_cell[doc["context_length"], doc["answer_depth"]].add(doc["jrt_row"])
        assert doc["jrt_answer_depth"] == pytest.approx(doc["answer_depth"], abs=0.1)
        assert doc["jrt_document_tokens"] >= doc["context_length"]
    assert set(by_cell) == {(n, d) for n in (250, 500, 1000, 2000) for d in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert len(set(map(frozenset, by_cell.values()))) == 1  # the same pages everywhere
    record = once.config.metadata["jrt"]
    used = len(by_cell[250, 0.0])
    assert used > 5
    assert (record["documents"], record["dropped"]) == (30, 30 - used)
    assert record["context_length"] == [250, 500, 1000, 2000]
    assert record["answer_depth"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    keys = ("jrt_row", "context_length", "answer_depth", "context")
    assert [[doc[k] for k in keys] for doc in once.eval_docs] == [[doc[k] for k in keys] for doc in twice.eval_docs]


def test_the_answer_is_first_and_last(write: Callable[..., str], load: Callable[..., Any], shared: Path) -> None:
    rows = [row(0, 200, "Rosebud", 200), row(1, 3, "Early bird", 300), row(2, 200, "x", 200)]
    rows.append({**row(3, 200, "Second", 200), "answers": ["Absent", "Second"]})
    rows.append({**row(4, 200, "Third", 200), "answers": ["Absent"]})
    metadata = {"data_dir": write("based_nq_1024", rows), "tokenizer": str(shared / "data" / "gpt2")}
    task = load("jrt_nq_1024", context_length=[70, 90], answer_depth=[0, 1], **metadata)
    found = {(d["jrt_row"], d["context_length"], d["answer_depth"]): d["context"].strip() for d in task.eval_docs}
    assert sorted({key[0] for key in found}) == [0, 3]
    for (number, length, depth), text in found.items():
        answer = {0: "Rosebud", 3: "Second"}[number]
        assert text.startswith(answer) if depth == 0 else text.endswith(answer)
        assert len(task._tokenizer.encode([f" {text}"])[0]) == length - 50
    record = task.config.metadata["jrt"]
    assert (record["documents"], record["dropped"], record["dropped_rows"]) == (5, 3, [1, 2, 4])
    assert "not in the document (1)" in record["dropped_why"]
    task.build_all_requests(rank=0, world_size=1)
    scores = [task.process_results(instance.doc, ["x"]) for instance in task.instances]
    assert len({instance.doc["jrt_prompt_tokens"] for instance in task.instances}) > 1
    assert len(scores) == 8


def test_only_lengths(write: Callable[..., str], load: Callable[..., Any], shared: Path) -> None:
    """Without a depth, each length has the windows that it has by itself."""
    rows = [row(i, 30 * i, f"Answer{i}", 100) for i in range(4)]
    metadata = {"data_dir": write("based_nq_1024", rows), "tokenizer": str(shared / "data" / "gpt2")}
    both = load("jrt_nq_1024", context_length=[70, 90], **metadata)
    for length in (70, 90):
        alone = load("jrt_nq_1024", context_length=length, **metadata)
        texts = [doc["context"] for doc in both.eval_docs if doc["context_length"] == length]
        assert texts == [doc["context"] for doc in alone.eval_docs]
        assert "answer_depth" not in alone.eval_docs.column_names
    some = load("jrt_nq_1024", context_length=[70, 90], documents=2, **metadata)
    assert [doc["jrt_row"] for doc in some.eval_docs] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"answer_depth": 2}, "answer_depth is 2: it must be a number from 0 (head) to 1 (end)"),
        ({"answer_depth": [0, "x"]}, "answer_depth is 'x'"),
        ({"answer_depth": 0.5, "context_length": None}, "answer_depth needs windows"),
        ({"answer_dept": 0.5}, "did you mean 'answer_depth'"),
        ({"context_length": [100, 100]}, "a list must have distinct numbers"),
        ({"context_length": [100, None]}, "a list must have distinct numbers"),
        ({"documents": 0}, "documents must be an integer of at least 1, got 0"),
        ({"documents": "many"}, "documents must be an integer"),
        ({"answer_depth": 0.5, "context_length": 5000}, "all 1 documents dropped: the document has too few tokens"),
    ],
)
def test_bad_settings(
    metadata: dict[str, Any], said: str, write: Callable[..., str], load: Callable[..., Any], shared: Path
) -> None:
    good = {"data_dir": write("based_nq_1024", [row(0, 9, "Ann", 9)]), "tokenizer": str(shared / "data" / "gpt2")}
    with pytest.raises(UserError) as error:
        load("jrt_nq_1024", **{**good, **metadata})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_facts_in_real_text(pages: str, shared: Path, load: Callable[..., Any]) -> None:
    metadata = {"data_dir": pages, "tokenizer": str(shared / "data" / "gpt2"), "documents": 3}
    metadata |= {"context_length": [300, 3000], "answer_depth": [0, 0.4, 1]}
    task = load("jrt_needle_twice", **metadata)
    docs = list(task.eval_docs)
    assert [(d["jrt_row"], d["context_length"], d["answer_depth"]) for d in docs] == [
        (i, n, x) for i in range(3) for n in (300, 3000) for x in (0.0, 0.4, 1.0)
    ]
    texts = defaultdict(set)
    for doc in docs:
        fact = f"{doc['jrt_cue']} {doc['jrt_answers'][0]}."
        assert doc["jrt_passage"].count(doc["jrt_answers"][0]) == doc["jrt_passage"].count(fact) == 1
        assert doc["jrt_answer_depth"] == pytest.approx(
            doc["answer_depth"], abs=0.2 if doc["context_length"] == 300 else 0.03
        )
        room = doc["context_length"] - 50 - task._tokenizer.count([doc["jrt_passage"]])[0]
        assert 0 <= room < 150
        texts[doc["jrt_row"], doc["context_length"]].add(" ".join(doc["jrt_passage"].replace(fact, "").split()))
    assert {len(same) for same in texts.values()} == {1}
    for number in range(3):
        (short,), (long,) = texts[number, 300], texts[number, 3000]
        assert long.startswith(short)
    task.build_all_requests(rank=0, world_size=1)
    prompt, doc = task.instances[1].args[0], docs[1]
    assert prompt == f"{doc['jrt_question']} {doc['jrt_passage']}\n{doc['jrt_passage']} {doc['jrt_cue']}"


def test_facts_where_the_pages_end(write: Callable[..., str], load: Callable[..., Any], shared: Path) -> None:
    metadata = {
        "data_dir": write("based_nq_2048", [row(0, 50, "Ann.", 50)]),
        "tokenizer": str(shared / "data" / "gpt2"),
    }
    task = load("jrt_needle", documents=1, context_length=2000, answer_depth=0.5, **metadata)
    assert 1700 < task.eval_docs[0]["jrt_document_tokens"] <= 1950


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"answer_depth": None}, "give context_length and answer_depth"),
        ({"context_length": None, "answer_depth": None}, "give context_length and answer_depth"),
        ({"context_length": 55}, "no room for the first sentence"),
    ],
)
def test_facts_need_a_place(
    metadata: dict[str, Any], said: str, write: Callable[..., str], load: Callable[..., Any], shared: Path
) -> None:
    good = {"data_dir": write("based_nq_2048", [row(0, 9, "Ann", 9)]), "tokenizer": str(shared / "data" / "gpt2")}
    with pytest.raises(UserError, match=said):
        load("jrt_needle", **{**good, **metadata})


def test_the_nearest_boundary() -> None:
    fact = Fact("Ulane", "Mayor", "Ann")
    sentences = [("A.", 10), ("B.", 30), ("C.", 60)]
    expected = {0.0: 0, 0.04: 0, 0.06: 10, 0.24: 10, 0.26: 40, 0.69: 40, 0.71: 100, 1.0: 100}
    assert {depth: hide(fact, sentences, depth)[1] for depth in expected} == expected
    assert hide(fact, sentences, 0.3)[0] == "A. B. The Mayor of Ulane is Ann. C."


def test_samples_of_a_run_have_length_and_depth(pages: str, shared: Path) -> None:
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from jrt_eval.plugin import task_folder

    class Silent(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [""] * len(requests)

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    metadata = {"data_dir": pages, "tokenizer": str(shared / "data" / "gpt2"), "documents": 1}
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    out = lm_eval.simple_evaluate(Silent(), tasks=["jrt_depth"], task_manager=manager, bootstrap_iters=0)
    assert out is not None
    for name in ("jrt_depth_nq", "jrt_depth_nq_twice"):
        docs = [sample["doc"] for sample in out["samples"][name]]
        assert len({(doc["context_length"], doc["answer_depth"]) for doc in docs}) == len(docs) == 20
