"""Bad input gives one line that names file, row and field."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError

DROP = {"context": "Ann has two cats.", "question": "How many? It is", "orig_question": "How many?", "answers": ["two"]}
NQ = {**DROP, "id": "1", "tok_pos": 1}
FDA = {"doc_id": "1", "file_name": "f", "key": "maker", "value": "Acme", "text": "The maker is Acme."}


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != field}


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        pytest.param("drop", [DROP, without(DROP, "answers")], ["line 2", "'answers' is missing"], id="field missing"),
        pytest.param("drop", [{**DROP, "question": None}], ["line 1", "'question' is null"], id="null"),
        pytest.param("fda", [FDA, FDA, {**FDA, "value": 12}], ["line 3", "'value'", "number"], id="answer a number"),
        pytest.param(
            "drop", [{**DROP, "answers": ["a", 2]}], ["line 1", "'answers', entry 1", "number"], id="answer in list"
        ),
        pytest.param("drop", [{**DROP, "answers": {"a": 1}}], ["'answers'", "object"], id="answers an object"),
        pytest.param(
            "drop", [DROP, "", '{"context": "x"'], ["line 3", "malformed JSON"], id="malformed after a blank line"
        ),
        pytest.param("drop", [DROP, "[1]"], ["line 2", "object is needed", "list"], id="no object"),
        pytest.param("drop", [], ["empty"], id="empty file"),
        pytest.param(
            "drop", [FDA], ["line 1", "'context' is missing", "needs context", "the row has doc_id"], id="schema"
        ),
        pytest.param("nq_1024", [{**NQ, "tok_pos": "far"}], ["line 1", "'tok_pos'"], id="tok_pos a string"),
        pytest.param("nq_1024", [{**NQ, "alt_answers": [None]}], ["'alt_answers', entry 0", "null"], id="alt_answers"),
        pytest.param(
            "drop",
            ['{"context": "\\ud800", "question": "", "orig_question": "", "answers": []}'],
            ["line 1", "'context' has half a surrogate pair"],
            id="half a character",
        ),
        pytest.param("drop", [{**DROP, "doc_id": 1}, {**DROP, "doc_id": "b"}], ["changes its type"], id="mixed types"),
        pytest.param("nq_1024", [{**NQ, "answers": ["x"]}], ["all 1 documents dropped"], id="nothing left"),
    ],
)
def test_rows(
    task: str, rows: list[Any], said: list[str], write: Callable[..., str], load: Callable[..., Any], shared: Path
) -> None:
    dataset = {"drop": "based_drop", "fda": "based-fda", "nq_1024": "based_nq_1024"}[task]
    data_dir = write(dataset, rows)
    with pytest.raises(UserError) as error:
        load(f"jrt_{task}", data_dir=data_dir, tokenizer=str(shared / "data" / "gpt2"))
    message = str(error.value)
    assert str(Path(data_dir) / dataset / "validation.jsonl") in message
    for part in said:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"context_length": -5}, "context_length is -5"),
        ({"context_length": -3.0}, "context_length is -3:"),
        ({"context_length": 50}, "more than answer_length (50)"),
        ({"context_length": 10.5}, "context_length is 10.5"),
        ({"context_length": "long"}, "integer"),
        ({"context_length": True}, "integer"),
        ({"context_length": 100, "answer_length": -1}, "answer_length is -1"),
        ({"data_dir": "/nowhere/at/all"}, "'/nowhere/at/all' is not a folder"),
        ({"dataset": 7}, "must be a hub id"),
        ({"contextlength": 500}, "no key 'contextlength'; did you mean 'context_length'?"),
        ({"tokenizer": None}, "give --metadata"),
        ({"tokenizer": "/nowhere/tokenizer"}, "no such folder"),
    ],
)
def test_metadata(
    metadata: dict[str, Any], said: str, write: Callable[..., str], load: Callable[..., Any], shared: Path
) -> None:
    good = {"data_dir": write("based_drop", [DROP]), "tokenizer": str(shared / "data" / "gpt2")}
    with pytest.raises(UserError) as error:
        load("jrt_drop", **{**good, **metadata})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_in_data_dir(write: Callable[..., str], load: Callable[..., Any], shared: Path) -> None:
    data_dir = write("based_drop", [DROP])
    with pytest.raises(UserError, match=r"based-fda: data_dir must hold based-fda/validation\.jsonl"):
        load("jrt_fda", data_dir=data_dir, tokenizer=str(shared / "data" / "gpt2"))


def test_bytes_that_are_no_text(tmp_path: Path, load: Callable[..., Any]) -> None:
    (tmp_path / "based_drop").mkdir()
    (tmp_path / "based_drop" / "validation.jsonl").write_bytes(b'{"context": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        load("jrt_drop", data_dir=str(tmp_path), context_length=None)


def test_broken_parquet(tmp_path: Path, load: Callable[..., Any]) -> None:
    (tmp_path / "based_drop").mkdir()
    (tmp_path / "based_drop" / "validation.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"validation\.parquet is not a parquet file"):
        load("jrt_drop", data_dir=str(tmp_path), context_length=None)


def test_hub_without_network(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("Couldn't find any data file")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.delenv("JRT_EVAL_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"cannot load data set 'hazyresearch/based-swde-v2'.*data_dir=FOLDER"):
        load("jrt_swde", context_length=None)
    with pytest.raises(UserError, match=r"cannot load data set 'hazyresearch/based-swde' "):
        load("jrt_swde", context_length=None, dataset={"based-swde-v2": "hazyresearch/based-swde"})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            "{text: context, answers: answers, question: question, variant: twise}",
            "unknown variant 'twise' (did you mean 'twice'?)",
        ),
        ("{text: context, answers: answers, question: question, style: sqad}", "did you mean 'squad'"),
        ("{text: context, answer: answers}", "unknown key 'answer' (did you mean 'answers'?)"),
        ("{answers: answers, question: question}", "'text' is missing"),
        ("{text: context, answers: answers}", "'question' is missing"),
        ("{text: context, answers: answers, question: quesion}", "field 'quesion' is missing"),
        ("{text: context, answers: answers, question: '{{quesion}}?'}", "line 1: the template of 'question'"),
        ("{text: context, answers: answers, question: '{{question'}", "line 1: the template of 'question'"),
        ("{text: 3, answers: answers, question: question}", "text holds 3"),
        ("context", "must map text"),
    ],
)
def test_document_in_yaml(
    document: str, said: str, tmp_path: Path, write: Callable[..., str], load: Callable[..., Any]
) -> None:
    from jrt_eval.plugin import task_folder

    include = task_folder() / "template" / "task_yaml"
    (tmp_path / "mine.yaml").write_text(
        f"include: {include}\ntask: mine\ndataset_path: based_drop\ndocument: {document}\n"
    )
    with pytest.raises(UserError) as error:
        load("mine", include=tmp_path, data_dir=write("based_drop", [DROP]), context_length=None)
    assert said in str(error.value)
    assert "task mine" in str(error.value) or "validation.jsonl, line 1" in str(error.value)


def test_lm_eval_prints_one_line(write: Callable[..., str]) -> None:
    data_dir = write("based_drop", ["{"])
    command = [sys.executable, "-m", "lm_eval", "--model", "dummy", "--tasks", "jrt_drop", "--metadata"]
    run = subprocess.run(
        [*command, f'{{"data_dir": "{data_dir}", "context_length": null}}'],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("jrt-eval: error:")
    assert "validation.jsonl, line 1: malformed JSON" in last
