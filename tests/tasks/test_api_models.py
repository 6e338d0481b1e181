"""lm-eval's API models over a server on this machine: our tasks and derived ones give what the model itself gives."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tenacity", reason="lm-eval's API models need it: pip install 'lm_eval[api]'")
pytest.importorskip("aiohttp")
torch = pytest.importorskip("torch")

from completions_server import Completions, serving  # noqa: E402

from jrt_eval.errors import UserError  # noqa: E402
from jrt_eval.minis import TOKENIZER  # noqa: E402
from jrt_eval.plugin import task_folder  # noqa: E402


@pytest.fixture(scope="module")
def completions() -> Completions:
    from jrt_eval import load_model
    from jrt_eval.models.tokenizers import load_tokenizer

    return Completions(load_model("mini-based", device="cpu", dtype="float32"), load_tokenizer("mini-based"))


@pytest.fixture(scope="module")
def server(completions: Completions) -> Iterator[str]:
    with serving(completions) as address:
        yield address


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple-choice task of the user's own."""
    folder = tmp_path_factory.mktemp("pick")
    rows = [{"question": f"The Logo is {a}. The Logo is", "choices": [a, b], "answer": 0} for a, b in
            (("eagle", "lion"), ("star", "moon"), ("wolf", "swan"))]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pick.yaml").write_text(
        f"task: pick\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
    )
    return folder


def evaluate(model: Any, tasks: list[str], include: Path | None = None, **arguments: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    metadata = {**arguments.pop("metadata", {}), **(arguments.get("model_args") or {})}
    folders = [str(task_folder()), *([str(include)] if include else [])]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    out = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, limit=2, bootstrap_iters=0, **arguments)
    assert out is not None
    return dict(out)


def answers(out: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in out["samples"][task]]


@pytest.fixture(scope="module")
def own(completions: Completions, pick: Path) -> dict[str, Any]:
    """What the model answers in our adapter."""
    from jrt_eval.model_adapters.jrt import JRTLM

    lm = JRTLM(completions.model, tokenizer=completions.tokenizer, device="cpu")
    return evaluate(lm, ["jrt_mini", "jrt_mqar_twice", "pick_twice"], pick)


@pytest.mark.parametrize("tokenized", [True, False])
def test_local_completions(server: str, own: dict[str, Any], pick: Path, tokenized: bool) -> None:
    arguments = {"model": "mini", "base_url": f"{server}/completions", "tokenizer": str(TOKENIZER)}
    if not tokenized:
        arguments |= {"tokenized_requests": False, "tokenizer_backend": "huggingface"}  # type: ignore[dict-item]
    tasks = ["jrt_mini", "jrt_mqar_twice", "pick_twice"]
    out = evaluate("local-completions", tasks, pick, model_args=arguments)
    for task in tasks[:2]:
        assert answers(out, task) == answers(own, task)
    for ours, theirs in zip(answers(own, "pick_twice"), answers(out, "pick_twice"), strict=True):
        for ((expected, greedy),), ((value, same),) in zip(ours, theirs, strict=True):
            assert value == pytest.approx(expected, abs=1e-3)
            assert greedy == same
    record = out["configs"]["jrt_mini"]["metadata"]["jrt"]
    assert record["tokenizer"] == str(TOKENIZER)
    assert record["truncated"] == (0 if tokenized else None)  # lm-eval cuts prompts that it sends as tokens
    costs = record["costs"]
    assert costs["prompt_tokens"] == own["configs"]["jrt_mini"]["metadata"]["jrt"]["costs"]["prompt_tokens"]


@pytest.mark.parametrize("kind", ["local", "openai"])
def test_chat_completions(
    kind: str, server: str, own: dict[str, Any], completions: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    completions.requests.clear()
    arguments = {"model": "chatty", "base_url": f"{server}/chat/completions", "tokenizer": str(TOKENIZER)}
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    out = evaluate(
        f"{kind}-chat-completions", ["jrt_mini", "jrt_mini_twice", "jrt_mqar_twice"], model_args=arguments,
        apply_chat_template=True, system_instruction="Be brief.", gen_kwargs=thinking,
    )  # fmt: skip
    for task in ("jrt_mini", "jrt_mqar_twice"):
        assert answers(out, task) == answers(own, task)
    payloads = completions.requests
    assert {tuple(message["role"] for message in payload["messages"]) for payload in payloads} == {("system", "user")}
    assert all(payload["chat_template_kwargs"] == {"enable_thinking": False} for payload in payloads)
    doc = out["samples"]["jrt_mini_twice"][0]["doc"]
    prompt = f"{doc['jrt_question']} {doc['jrt_passage']}\n{doc['jrt_passage']} {doc['jrt_cue']}"
    assert prompt in [payload["messages"][1]["content"] for payload in payloads]
    record = out["configs"]["jrt_mini_twice"]["metadata"]["jrt"]
    assert record["longest_prompt"] > 0
    assert record["truncated"] is None  # only the server knows
    sample = out["samples"]["jrt_mini_twice"][0]
    assert sample["jrt_cost"]["prompt_tokens"] == pytest.approx(sample["doc"]["jrt_prompt_tokens"])
    assert out["config"]["gen_kwargs"] == thinking


@pytest.mark.parametrize(
    ("arguments", "loads"),
    [
        ({"model": "gpt-4o"}, False),
        ({"model": "gpt-4o", "tokenizer": str(TOKENIZER)}, True),
        ({"model": str(TOKENIZER)}, True),
        ({"model": "mini-based"}, True),
    ],
)
def test_which_tokenizer_measures_windows(arguments: dict[str, Any], loads: bool, shared: Path) -> None:
    from lm_eval.tasks import TaskManager

    metadata = {"data_dir": str(shared / "data" / "hub"), **arguments}
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    if not loads:
        with pytest.raises(UserError, match="names none: give --metadata tokenizer=FOLDER_OR_HUB_ID"):
            manager.load(["jrt_squad"])
        return
    task = manager.load(["jrt_squad"])["tasks"]["jrt_squad"]
    assert task.config.metadata["jrt"]["tokenizer"] == arguments.get("tokenizer", arguments["model"])


def test_the_pages_commands(server: str, shared: Path) -> None:
    """The commands of docs/api-models.md, with this server and its tokenizer in place of those that they name."""
    page = Path(__file__).parents[2] / "docs" / "api-models.md"
    if not page.is_file():
        pytest.skip(f"no {page}")
    commands = [shlex.split(block) for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.M | re.S)]
    assert len(commands) == 2
    for command in commands:
        given = dict(part.split("=", 1) for part in command[command.index("--model_args") + 1].split(","))
        given |= {
            "tokenizer": str(TOKENIZER),
            "base_url": given["base_url"].replace("http://localhost:8000/v1", server),
        }
        tasks = command[command.index("--tasks") + 1].split(",")
        out = evaluate(
            command[command.index("--model") + 1], tasks, model_args=given,
            apply_chat_template="--apply_chat_template" in command,
            metadata={"data_dir": str(shared / "data" / "hub")},
        )  # fmt: skip
        assert set(out["results"]) == set(tasks)
        assert all(sample["jrt_cost"]["prompt_tokens"] for task in tasks for sample in out["samples"][task])
