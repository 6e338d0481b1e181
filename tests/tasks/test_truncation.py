"""`on_truncation`: what `--model jrt` does with prompts that are too long, and what its results say about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.models.context import shorten
from jrt_eval.plugin import task_folder
from jrt_eval.prompts import truncation

PAIR = {"text": ["red", "blue"], "label": ["A", "B"]}


@pytest.mark.parametrize(
    ("room", "side", "expected"),
    [
        (5, "left", [0, 1, 2, 3, 4]),
        (3, "left", [2, 3, 4]),
        (1, "left", [4]),
        (4, "middle", [0, 1, 3, 4]),
        (3, "middle", [0, 3, 4]),
        (1, "middle", [4]),
    ],
)
def test_shorten(room: int, side: str, expected: list[int]) -> None:
    assert shorten(range(5), room, side) == expected


@pytest.fixture(scope="module")
def model() -> Callable[..., Any]:
    """`model(on_truncation="skip", max_length=200)`: a mini checkpoint in the adapter."""
    pytest.importorskip("torch")
    from jrt_eval.model_adapters.jrt import JRTLM

    from jrt_eval import load_model
    from jrt_eval.models.tokenizers import load_tokenizer

    module = load_model("mini-based", device="cpu", dtype="float32")
    tokenizer = load_tokenizer("mini-based")
    return lambda **options: JRTLM(module, tokenizer=tokenizer, device="cpu", batch_size=8, **options)


def evaluate(model: Any, *tasks: str, limit: int = 4, **metadata: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    out = lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0)
    assert out is not None
    return dict(out)


def lengths(model: Any, out: dict[str, Any], task: str) -> list[int]:
    return [len(model.tok_encode(sample["arguments"][0][0])) for sample in out["samples"][task]]


@pytest.mark.parametrize("side", ["left", "middle"])
def test_what_the_model_reads(side: str, model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model(on_truncation=side, max_length=248)
    read: list[list[int]] = []
    original = lm.model.continue_prompts
    monkeypatch.setattr(
        type(lm.model),
        "continue_prompts",
        lambda self, batch, *a, **k: [read.extend(batch), original(batch, *a, **k)][1],
    )
    out = evaluate(lm, "jrt_mini_twice", limit=2)
    texts = {lm.tok_decode(tokens) for tokens in read}
    assert {len(tokens) for tokens in read} == {200}
    for sample, length in zip(out["samples"]["jrt_mini_twice"], lengths(lm, out, "jrt_mini_twice"), strict=True):
        assert sample["jrt_cost"]["tokens_cut"] == length - 200 > 0
        assert sample["jrt_cost"]["cut_from"] == side
        question, cue = sample["doc"]["jrt_question"], sample["doc"]["jrt_cue"]
        (text,) = [text for text in texts if text.endswith(cue)]
        assert text.startswith(question) == (side == "middle")
    costs = out["configs"]["jrt_mini_twice"]["metadata"]["jrt"]["costs"]
    assert (costs["truncated"], costs["documents"], costs["scored"], costs["on_truncation"]) == (2, 2, 2, side)
    assert out["config"]["model_on_truncation"] == side


def test_skipped_documents_have_no_score(model: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    every = evaluate(model(), "jrt_mini", limit=8)
    counted = sorted(lengths(model(), every, "jrt_mini"))
    lm = model(on_truncation="skip", max_length=counted[3] + 48)  # four are longer
    out = evaluate(lm, "jrt_mini", limit=8)
    samples = {sample["doc_id"]: sample for sample in out["samples"]["jrt_mini"]}
    fit = {i for i, length in enumerate(lengths(lm, out, "jrt_mini")) if length <= counted[3]}
    assert 4 <= len(fit) < 8
    scores = {s["doc_id"]: s["contains"] for s in every["samples"]["jrt_mini"]}
    assert out["results"]["jrt_mini"]["contains,none"] == pytest.approx(sum(scores[i] for i in fit) / len(fit))
    assert {i for i, sample in samples.items() if "contains" in sample} == fit
    assert {i for i, sample in samples.items() if sample["jrt_cost"]["cut_from"] == "skipped"} == set(range(8)) - fit
    costs = out["configs"]["jrt_mini"]["metadata"]["jrt"]["costs"]
    assert (costs["documents"], costs["scored"]) == (8, len(fit))
    assert f"scores are means over the other {len(fit)}" in caplog.text


def test_choices_and_a_task_of_which_nothing_is_left(model: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"question": "word " * n, "choices": PAIR["text"], "answer": 0} for n in (3, 90, 5)]
    import json

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pick.yaml").write_text(
        f"task: pick\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
    )
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run(max_length: int, name: str = "pick") -> tuple[dict[str, Any], Any]:
        lm = model(on_truncation="skip", max_length=max_length)
        out = lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0)
        assert out is not None
        return out["configs"][name]["metadata"]["jrt"]["costs"], out["results"][name].get("acc,none")

    costs, accuracy = run(60)
    assert (costs["documents"], costs["scored"], costs["truncated"]) == (3, 2, 2)  # two choices of one document
    assert accuracy in (0, 0.5, 1)
    assert run(60, "pick_twice")[0]["scored"] == 2
    costs, accuracy = run(2)
    assert (costs["scored"], accuracy) == (0, None)


def test_fail(model: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"2 of 2 prompts exceed 52 tokens.*on_truncation=left, middle or skip"):
        evaluate(model(on_truncation="fail", max_length=100), "jrt_mini", limit=2)
    with pytest.raises(UserError, match="on_truncation=righ is not known"):
        model(on_truncation="righ")


def test_cached_answers_of_skipped_prompts_are_refused(model: Callable[..., Any], tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm = model(on_truncation="skip", max_length=100)
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False)
    with pytest.raises(UserError, match="does not work with --use_cache"):
        lm_eval.simple_evaluate(
            lm,
            tasks=["jrt_mini"],
            task_manager=manager,
            limit=1,
            use_cache=str(tmp_path / "answers"),
            bootstrap_iters=0,
        )


def test_a_group_whose_tasks_have_nothing_left(model: Callable[..., Any], tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [jrt_mini, jrt_mini_twice]\n"
        "aggregate_metric_list: [{metric: contains, weight_by_size: false, filter_list: [none]}]\n"
    )
    manager = TaskManager(include_path=[str(task_folder()), str(tmp_path)], include_defaults=False)
    counted = lengths(model(), evaluate(model(), "jrt_mini", limit=2), "jrt_mini")
    lm = model(on_truncation="skip", max_length=max(counted) + 48)  # too short for any prompt that is read twice
    out = lm_eval.simple_evaluate(lm, tasks=["both"], task_manager=manager, limit=2, bootstrap_iters=0)
    assert out is not None
    assert "contains,none" not in out["results"]["jrt_mini_twice"]
    once = out["results"]["jrt_mini"]["contains,none"]
    assert out["groups"]["both"].get("contains,none", once) == once


def test_tasks_are_left_as_they_were(model: Callable[..., Any]) -> None:
    class Task:
        instances: tuple[Any, ...] = ()

        def doc_iterator(self) -> Any:
            return iter(())

        def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
            return {}

    task = Task()
    with truncation.skipping({"a": task}, model(on_truncation="skip")):
        assert "process_results" in vars(task)
    assert vars(task) == {}
