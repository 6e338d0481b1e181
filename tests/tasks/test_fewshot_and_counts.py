"""Few-shot examples from other documents; prompts that are cut and documents that are dropped are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError


def nq(number: int, context: str, answer: str, **more: Any) -> dict[str, Any]:
    question = f"What is number {number}?"
    return {"id": str(number), "context": context, "question": f"{question} It is", "orig_question": question,
            "answers": [answer], "tok_pos": 0, **more}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["jrt_swde", "jrt_fda_twice", "jrt_squad", "jrt_drop", "jrt_nq_1024", "jrt_sample", "jrt_sample_twice"]
)
def test_examples_come_from_other_documents(name: str, shared: Path, load: Callable[..., Any]) -> None:
    task = load(name, data_dir=str(shared / "data" / "hub"), context_length=None)
    task.set_config("num_fewshot", 2)
    task.set_fewshot_seed(1234)
    drawn: dict[int, list[dict[str, Any]]] = {}
    draw = task.sampler.sample

    def remember(n: int, eval_doc: Any = None, **kwargs: Any) -> Any:
        drawn[eval_doc["jrt_row"]] = draw(n, eval_doc=eval_doc, **kwargs)
        return drawn[eval_doc["jrt_row"]]

    task.sampler.sample = remember
    task.build_all_requests(rank=0, world_size=1)
    text = task.spec.text
    for instance in task.instances:
        examples = drawn[instance.doc["jrt_row"]]
        assert len(examples) == 2
        assert all(example[text].strip() != instance.doc[text].strip() for example in examples)
        for name_ in ("doc_id", "file_name", "passage_id"):
            assert all(name_ not in example or example[name_] != instance.doc[name_] for example in examples)
        shots = "".join(f"{task.doc_to_text(e)} {e['jrt_answers'][0]}\n\n" for e in examples)
        assert instance.args[0] == shots + task.doc_to_text(instance.doc)


def test_examples_are_the_same_for_the_same_seed(shared: Path, load: Callable[..., Any]) -> None:
    prompts = []
    for _ in range(2):
        task = load("jrt_sample")
        task.set_config("num_fewshot", 2)
        task.set_fewshot_seed(7)
        task.build_all_requests(rank=0, world_size=1)
        prompts.append([instance.args[0] for instance in task.instances])
    assert prompts[0] == prompts[1]


def test_too_few_other_documents(write: Callable[..., str], load: Callable[..., Any]) -> None:
    same = [nq(i, "The same passage.", "passage") for i in range(5)]
    task = load("jrt_nq_1024", data_dir=write("based_nq_1024", same), context_length=None)
    task.set_config("num_fewshot", 1)
    task.set_fewshot_seed(1)
    with pytest.raises(UserError, match="only 0 rows are of another document"):
        task.build_all_requests(rank=0, world_size=1)


def test_prompts_that_are_cut(
    write: Callable[..., str], load: Callable[..., Any], shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [nq(0, "one two three " * 40, "two"), nq(1, "The passage is short.", "short")]
    gpt2 = str(shared / "data" / "gpt2")
    metadata = {"data_dir": write("based_nq_1024", rows), "tokenizer": gpt2, "max_length": 148}
    task = load("jrt_nq_1024_twice", **metadata)
    with caplog.at_level(logging.WARNING):
        task.build_all_requests(rank=0, world_size=1)
    counts = task.config.to_dict()["metadata"]["jrt"]
    length = len(task._tokenizer.encode([task.instances[0].args[0]])[0])
    assert (counts["prompts"], counts["truncated"], counts["max_prompt_tokens"]) == (2, 1, 100)
    assert (counts["longest_prompt"], counts["tokens_lost"]) == (length, length - 100)
    warnings = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    assert len(warnings) == 1
    assert "jrt_nq_1024_twice: 1 of 2 prompts" in warnings[0]
    assert "question first" in warnings[0]
    assert [task.process_results(i.doc, ["x"])["truncated"] for i in task.instances] == [1.0, 0.0]


def test_length_is_the_models_own(
    write: Callable[..., str], load: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    metadata = {"data_dir": write("based_nq_1024", [nq(0, "short " * 30, "short")])}
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_positions": 60}')
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to((shared / "data" / "gpt2" / name).resolve())
    task = load("jrt_nq_1024", pretrained=str(tmp_path), **metadata)
    task.build_all_requests(rank=0, world_size=1)
    assert task.config.metadata["jrt"]["max_prompt_tokens"] == 60 - 48
    assert task.config.metadata["jrt"]["truncated"] == 1
    recurrent = load("jrt_nq_1024", pretrained=str(shared / "data" / "gpt2"), **metadata)
    recurrent.build_all_requests(rank=0, world_size=1)
    assert recurrent.config.metadata["jrt"]["max_prompt_tokens"] == 2048 - 48


def test_dropped_documents_are_counted_and_named(
    write: Callable[..., str], load: Callable[..., Any], shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [nq(0, "It is x.", "x"), nq(1, "It is plain.", "plain"), nq(2, "Nothing.", "", answers=[])]
    metadata = {"data_dir": write("based_nq_1024", rows), "tokenizer": str(shared / "data" / "gpt2")}
    with caplog.at_level(logging.WARNING):
        task = load("jrt_nq_1024", **metadata)
    counts = task.config.metadata["jrt"]
    assert (counts["documents"], counts["dropped"], counts["dropped_rows"]) == (3, 2, [0, 2])
    assert "one character or none" in counts["dropped_why"]
    assert any("2 of 3 documents dropped" in record.getMessage() for record in caplog.records)
    assert [doc["jrt_row"] for doc in task.eval_docs] == [1]
    whole = load("jrt_nq_1024", context_length=None, **metadata)
    assert whole.config.metadata["jrt"]["dropped"] == 0
    assert whole.config.metadata["jrt"]["without_answer"] == 1
    assert whole.process_results(list(whole.eval_docs)[2], ["x"])["contains"] == 0


def test_columns_for_analysis(write: Callable[..., str], load: Callable[..., Any], shared: Path) -> None:
    context = "filler words here " * 100 + "the answer is Rosebud " + "and more " * 100
    rows = [nq(0, context, "rosebud"), nq(1, context, "absent", tok_pos=None)]
    gpt2 = str(shared / "data" / "gpt2")
    task = load("jrt_nq_1024", data_dir=write("based_nq_1024", rows), tokenizer=gpt2, context_length=150)
    found, absent = task.eval_docs
    ids = task._tokenizer.encode([context.strip(), context[: context.index("Rosebud")]])
    assert found["jrt_document_tokens"] == absent["jrt_document_tokens"] == len(ids[0])
    assert found["jrt_answer_position"] == len(ids[1])
    assert absent["jrt_answer_position"] is None
    assert absent["jrt_answer_depth"] is None
    assert found["jrt_answer_depth"] == pytest.approx(
        found["jrt_passage"].index("Rosebud") / len(found["jrt_passage"]), abs=1e-4
    )
    head = load("jrt_drop", data_dir=str(shared / "data" / "hub"), tokenizer=gpt2)
    assert {doc["jrt_answer_position"] for doc in head.eval_docs} == {None}
