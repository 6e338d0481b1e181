"""Whole runs through `simple_evaluate`: the cache of requests, models given as objects, and recorded costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.plugin import task_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_model(tokenizer: Any = None, max_length: int = 300) -> Any:
    """An lm-eval model object that knows no answers."""
    from lm_eval.api.model import LM

    class Silent(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            time.sleep(0.05)
            return ["no idea"] * len(requests)

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            return [(-1.0, False)] * len(requests)

        loglikelihood_rolling = loglikelihood

    model = Silent()
    model.tokenizer, model.max_length = tokenizer, max_length
    return model


def evaluate(model: Any, tasks: list[str], cached: bool = False, **metadata: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    out = lm_eval.simple_evaluate(
        model, tasks=tasks, task_manager=manager, limit=3, bootstrap_iters=0, cache_requests=cached
    )
    assert out is not None
    return dict(out)


def prompts(out: dict[str, Any], task: str) -> list[str]:
    return [sample["arguments"][0][0] for sample in out["samples"][task]]


@pytest.fixture
def gpt2(shared: Path) -> Any:
    from jrt_eval.models.tokenizers import load_tokenizer

    return load_tokenizer(str(shared / "data" / "gpt2"))


def test_cached_requests_belong_to_their_settings(shared: Path, gpt2: Any, cache: Path) -> None:
    data_dir = str(shared / "data" / "hub")

    def run(name: str, cached: bool = True, **metadata: Any) -> list[str]:
        return prompts(evaluate(make_model(gpt2), [name], cached, data_dir=data_dir, **metadata), name)

    long = run("jrt_squad", context_length=100)
    assert run("jrt_squad", context_length=60) == run("jrt_squad", cached=False, context_length=60) != long
    files = len(list(cache.iterdir()))
    assert run("jrt_squad", context_length=100) == long
    assert len(list(cache.iterdir())) == files == 2
    assert (
        run("jrt_mqar_twice")
        != run("jrt_mqar_twice", separator=" | ")
        == run("jrt_mqar_twice", cached=False, separator=" | ")
    )
    assert run("jrt_mqar_twice", pairs=4) != run("jrt_mqar_twice")


def test_a_model_object_brings_its_tokenizer_and_length(shared: Path, gpt2: Any) -> None:
    out = evaluate(make_model(gpt2, 200), ["jrt_squad_twice"], data_dir=str(shared / "data" / "hub"))
    record = out["configs"]["jrt_squad_twice"]["metadata"]["jrt"]
    assert record["context_length"] == 1000
    assert record["max_prompt_tokens"] == 200 - 48
    assert record["truncated"] == record["costs"]["truncated"] > 0


def test_costs_of_a_run(shared: Path, gpt2: Any) -> None:
    out = evaluate(make_model(gpt2, 2048), ["jrt_sample", "jrt_sample_twice", "jrt_mqar"])
    for task in ("jrt_sample", "jrt_sample_twice", "jrt_mqar"):
        costs = out["configs"][task]["metadata"]["jrt"]["costs"]
        samples = out["samples"][task]
        counted = [len(gpt2(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts(out, task)]
        assert [sample["jrt_cost"]["prompt_tokens"] for sample in samples] == counted
        assert {sample["jrt_cost"]["generated_tokens"] for sample in samples} == {2}
        assert costs["prompt_tokens"] == sum(counted)
        assert (costs["requests"], costs["generated_tokens"], costs["truncated"]) == (3, 6, 0)
        assert costs["seconds"] > 0
    seconds = sum(out["configs"][task]["metadata"]["jrt"]["costs"]["seconds"] for task in out["configs"])
    assert seconds >= 0.05
    assert out["config"]["model_tokens_per_second"] == pytest.approx(18 / seconds, rel=0.01)


def test_tokens_that_are_cut_are_recorded_per_sample(gpt2: Any) -> None:
    out = evaluate(make_model(gpt2, 100), ["jrt_sample"])
    for sample in out["samples"]["jrt_sample"]:
        cost = sample["jrt_cost"]
        assert cost["tokens_cut"] == max(0, cost["prompt_tokens"] - (100 - 48)) > 0
        assert cost["cut_from"] == "left"


def test_what_follows_a_stop_string_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers may ignore stop strings, or leave them at the end."""
    scores = []
    for write in ("{}", "{}\n", "{}\nAnd so on.", "Unknown\n{}"):
        model = make_model()
        monkeypatch.setattr(
            model,
            "generate_until",
            lambda requests, w=write, **_: [w.format(r.doc["jrt_answers"][0]) for r in requests],
        )
        out = evaluate(model, ["jrt_sample"])["results"]["jrt_sample"]
        scores.append([out[f"{metric},none"] for metric in ("contains", "exact_match", "f1")])
    assert scores == [[1, 1, 1]] * 3 + [[0, 0, 0]]


def test_a_model_without_a_tokenizer() -> None:
    model = make_model()
    out = evaluate(model, ["jrt_sample", "jrt_mqar"])
    costs = out["configs"]["jrt_sample"]["metadata"]["jrt"]["costs"]
    assert (costs["prompt_tokens"], costs["generated_tokens"]) == (None, None)
    assert "jrt_cost" not in out["samples"]["jrt_sample"][0]
    assert "generate_until" not in vars(model)  # the model object is left as it was
