"""`<task>_<variant>` for tasks, groups and tags of lm-eval and of the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.errors import UserError

CHOICES = {"text": ["red", "blue"], "label": ["A", "B"]}
ARC = [{"id": str(i), "question": f"Colour {i}?", "choices": CHOICES, "answerKey": "A"} for i in range(4)]
GSM = [{"question": f"{i} plus one?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(8)]
WINOGRANDE = [{"sentence": "Ann met _ today.", "option1": "Bob", "option2": "Eve", "answer": "2"}]
MMLU = [{"question": "Which?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 1}] * 3
LAMBADA = [{"text": "The cat sat on the mat"}]
SQUAD = [{"text": "Ann lives here. Ann lives", "value": "here", "title": "t", "doc_id": "1", "question": "Where?"}]
WIKITEXT = [{"page": "some text"}]
DATA = {
    "allenai/ai2_arc": ARC,
    "openai/gsm8k": GSM,
    "allenai/winogrande": WINOGRANDE,
    "cais/mmlu": MMLU,
    "EleutherAI/lambada_openai": LAMBADA,
    "hazyresearch/based-squad": SQUAD,
    "EleutherAI/wikitext_document_level": WIKITEXT,
}


@pytest.fixture(scope="module")
def stock() -> Any:
    """lm-eval's index of all its tasks, made once: reading thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture
def build(stock: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`build("arc_easy_twice", repeat=...)`: the tasks of that name over made-up rows, with these metadata."""
    import datasets

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        rows = datasets.Dataset.from_list(DATA[path])
        return dict.fromkeys(("train", "validation", "test", "dev"), rows)

    monkeypatch.setattr(datasets, "load_dataset", load)

    def build_tasks(name: str, **metadata: Any) -> dict[str, Any]:
        stock._factory._meta = metadata
        return dict(stock.load([name])["tasks"])

    return build_tasks


def prompts(task: Any, shots: int = 0, **options: Any) -> list[Any]:
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1)
    task.build_all_requests(rank=0, world_size=1, limit=1, **options)
    return [instance.args for instance in task.instances]


def chat(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return json.dumps(messages)


Q = "Question: Colour 0?\nAnswer:"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("once", Q),
        ("twice", f"{Q}\n{Q}"),
        ("thrice", f"{Q}\n{Q}\n{Q}"),
        ("verbose", f"{Q}\nLet me repeat that:\n{Q}"),
        ("question_first", f"Colour 0?\n{Q}"),
        ("padded", f"The grass is green. The sky\n{Q}"),
    ],
)
def test_multiple_choice(variant: str, expected: str, build: Callable[..., Any]) -> None:
    (task,) = build(f"arc_easy_{variant}").values()
    assert task.config.task == f"arc_easy_{variant}"
    assert prompts(task) == [(expected, " red"), (expected, " blue")]
    record = task.config.to_dict()["metadata"]["jrt"]
    assert (record["variant"], record["base_task"]) == (variant, "arc_easy")
    assert task.process_results(ARC[0], [(-1.0, True), (-2.0, False)])["acc"] == 1


def test_generation_with_examples_filters_and_metrics(build: Callable[..., Any]) -> None:
    (once,), (twice,) = build("gsm8k").values(), build("gsm8k_twice").values()
    ((context, kwargs),), ((repeated, same),) = prompts(once, 2), prompts(twice, 2)
    assert repeated == context + "\n" + context.rsplit("\n\n", 1)[1]
    assert kwargs == same
    assert [f.name for f in twice._filters] == ["strict-match", "flexible-extract"]
    assert twice.process_results(GSM[0], ["1"]) == once.process_results(GSM[0], ["1"])


def test_the_whole_prompt_by_metadata(build: Callable[..., Any]) -> None:
    (once,) = build("gsm8k").values()
    (twice,) = build("gsm8k_twice", repeat="prompt").values()
    ((context, _),) = prompts(once, 2)
    assert prompts(twice, 2)[0][0] == f"{context}\n{context}"
    system = {"system_instruction": "Be brief. "}
    assert prompts(twice, 2, **system)[0][0] == f"Be brief. {context}\n{context}"


def test_repetition_is_inside_the_last_user_turn(build: Callable[..., Any]) -> None:
    (task,) = build("gsm8k_twice").values()
    options = {"apply_chat_template": True, "chat_template": chat, "system_instruction": "Be brief."}
    question = "Question: 0 plus one?\nAnswer:"
    turns = json.loads(prompts(task, 2, fewshot_as_multiturn=True, **options)[0][0])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[-1]["content"] == f"{question}\n{question}"
    assert all(turn["content"].count("Question:") == 1 for turn in turns[1:-1:2])
    (whole,) = build("gsm8k_twice", repeat="prompt").values()
    single = json.loads(prompts(whole, 2, **options)[0][0])
    assert [turn["role"] for turn in single] == ["system", "user"]
    half = len(single[1]["content"]) // 2
    assert single[1]["content"][:half] == single[1]["content"][half + 1 :]
    with pytest.raises(UserError, match="drop --fewshot_as_multiturn"):
        prompts(whole, 2, fewshot_as_multiturn=True, **options)


def test_contexts_that_differ_by_choice(build: Callable[..., Any]) -> None:
    (task,) = build("winogrande_twice").values()
    assert [context for context, _ in prompts(task)] == ["Ann met Bob\nAnn met Bob", "Ann met Eve\nAnn met Eve"]
    assert task.process_results(WINOGRANDE[0], [(-2.0, True), (-1.0, False)])["acc"] == 1


def test_loglikelihood(build: Callable[..., Any]) -> None:
    (task,) = build("lambada_openai_twice").values()
    assert prompts(task) == [("The cat sat on the\nThe cat sat on the", " mat")]


def test_a_class_that_takes_no_config(build: Callable[..., Any]) -> None:
    (task,) = build("squad_completion_twice").values()
    assert task.config.task == "squad_completion_twice"
    assert prompts(task)[0][0] == "\n".join([SQUAD[0]["text"]] * 2)
    assert task.config.to_dict()["metadata"]["jrt"]["base_task"] == "squad_completion"


def test_groups_and_tags(build: Callable[..., Any], stock: Any) -> None:
    tasks = build("mmlu_twice")
    assert len(tasks) == 57
    assert all(name.startswith("mmlu_") and name.endswith("_twice") for name in tasks)
    assert {task.config.metadata["jrt"]["variant"] for task in tasks.values()} == {"twice"}
    groups = stock.load(["mmlu_twice"])["groups"]
    assert groups["mmlu_twice"].aggregate_metric_list[0].metric == "acc"
    assert set(build("ai2_arc_padded")) == {"arc_easy_padded", "arc_challenge_padded"}


@pytest.mark.parametrize(
    ("name", "metadata", "said"),
    [
        ("wikitext_twice", {}, "loglikelihood_rolling"),
        ("gsm8k_twice", {"repeat": "all"}, "use question or prompt"),
        ("gsm8k_twice", {"separater": " "}, "did you mean 'separator'"),
        ("gsm8k_twice", {"separator": 3}, "must be a string"),
        ("winogrande_question_first", {}, "has no field question or query"),
        ("winogrande_question_first", {"question": "{{sentense}}"}, "the template of 'question'"),
    ],
)
def test_what_is_refused(name: str, metadata: dict[str, Any], said: str, build: Callable[..., Any]) -> None:
    with pytest.raises(UserError) as error:
        prompts(*build(name, **metadata).values())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_question_named_by_metadata(build: Callable[..., Any]) -> None:
    (task,) = build("winogrande_question_first", question="{{sentence}}", separator=" | ").values()
    assert prompts(task)[0][0] == "Ann met _ today. | Ann met Bob"


def test_names_match_as_patterns(stock: Any) -> None:
    assert stock.match_tasks(["arc_easy_twice"]) == ["arc_easy_twice"]
    assert stock.match_tasks(["arc_*_padded"]) == sorted(f"{name}_padded" for name in stock.match_tasks(["arc_*"]))
    assert stock.match_tasks(["no_such_task_twice"]) == []
    assert "jrt_swde_twice" in stock.match_tasks(["jrt_*"])
    assert not any(name.count("_twice") > 1 for name in stock.match_tasks(["jrt_*_twice"]))
    assert "NAME_twice" in stock.list_all_tasks()
    with pytest.raises(KeyError):
        stock.task_index["no_such_task_twice"]


def test_an_existing_task_wins(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    for name in ("mine", "mine_twice"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndoc_to_text: {name}\ndoc_to_target: x\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert manager.task_index["mine_twice"].yaml_path == tmp_path / "mine_twice.yaml"
    assert manager.task_index["mine_padded"].yaml_path is None


def test_tasks_that_a_group_defines_in_place(tmp_path: Path, build: Callable[..., Any]) -> None:
    from lm_eval.tasks import TaskManager

    (tmp_path / "two.yaml").write_text(
        "group: two\ntask:\n"
        "  - {task: inline, dataset_path: openai/gsm8k, test_split: test, doc_to_text: '{{question}}', doc_to_target: answer}\n"
        "  - {group: inner, task: [{task: plain, num_fewshot: 1}]}\n"
    )
    (tmp_path / "plain.yaml").write_text(
        "task: plain\ndataset_path: openai/gsm8k\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tasks = manager.load(["two_twice"])["tasks"]
    assert sorted(tasks) == ["inline_twice", "plain_twice"]
    assert tasks["plain_twice"].config.num_fewshot == 1
    assert prompts(tasks["inline_twice"])[0][0] == "0 plus one?\n0 plus one?"


@pytest.mark.parametrize("variant", ["twice", "thrice", "question_first", "padded", "verbose"])
def test_our_own_families(variant: str, shared: Path, load: Callable[..., Any]) -> None:
    metadata = {"data_dir": str(shared / "data" / "hub"), "tokenizer": str(shared / "data" / "gpt2")}
    task, twice = load(f"jrt_fda_{variant}", **metadata), load("jrt_fda_twice", **metadata)
    asked, compared = prompts(task)[0][0], prompts(twice)[0][0]
    doc = task.instances[0].doc
    assert asked.endswith(f"\n{doc['jrt_passage']} {doc['jrt_cue']}") or variant == "question_first"
    record = task.config.metadata["jrt"]
    assert (record["variant"], record["base_task"]) == (variant, "jrt_fda")
    count = task._tokenizer.count
    if variant == "padded":
        assert record["padded_by"] == "tokens"
        assert count([asked])[0] == pytest.approx(count([compared])[0], abs=2)
        assert doc["jrt_passage"] not in asked.split("\n")[0]


def test_all_of_our_tasks_of_a_variant(shared: Path) -> None:
    from lm_eval.tasks import TaskManager

    from jrt_eval.plugin import task_folder

    metadata = {"data_dir": str(shared / "data" / "hub"), "tokenizer": str(shared / "data" / "gpt2")}
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    loaded = manager.load(["jrt_padded"])
    assert sorted(loaded["tasks"]) == sorted(
        f"jrt_{name}_padded" for name in ("swde", "fda", "squad", "drop", "triviaqa", "nq_1024")
    )
    assert loaded["groups"]["jrt_padded"].aggregate_metric_list
