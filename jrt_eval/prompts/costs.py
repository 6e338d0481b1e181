"""What a run costs: prompt tokens, generated tokens and seconds, for every task and every backend.

`recording` wraps lm-eval's `evaluate`. Afterwards each sample has, under `jrt_cost`,

    prompt_tokens, generated_tokens   of the sample's requests together (log-likelihoods: the scored tokens)
    tokens_cut, cut_from              tokens that exceed the model's length; left or middle, where they are cut out, or
                                      skipped: the document has no score

and `configs.<task>.metadata.jrt.costs` has

    requests, prompt_tokens, generated_tokens, truncated   sums over the task's requests
    documents, scored           documents, and those of them that the scores are means over
    on_truncation               what the model does with longer prompts: left, middle, skip or fail
    seconds                     of the model's calls; shared among tasks by tokens where one call serves several of them
    documents_per_second

Tokens need the model's tokenizer, or one that the run names (`tokenizer=`, which API models need); without one they are
null and seconds are shared by requests. In a run of several processes, each counts its own requests.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jrt_eval.errors import UserError
from jrt_eval.prompts import tokenization
from jrt_eval.prompts.evaluated import evaluating, max_length_of, tokenizer_of
from jrt_eval.prompts.requests import new_tokens, prompt_text
from jrt_eval.prompts.tokenization import Tokenizer
from jrt_eval.prompts.truncation import SIDE, on_truncation, recorded_cut, skipped_documents, skipping

logger = logging.getLogger(__name__)

METHODS = ("generate_until", "loglikelihood", "loglikelihood_rolling")


class Cost(NamedTuple):
    """Tokens of one request. `cut`: of the prompt, those that exceed the model's length."""

    prompt: int
    generated: int
    cut: int


def recording(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """lm-eval's `evaluate`, which also records costs."""

    @functools.wraps(evaluate)
    def recorded(lm: Any, task_dict: Any, *args: Any, **kwargs: Any) -> Any:
        seconds: dict[str, float] = defaultdict(float)
        found = task_dict.get("tasks") if isinstance(task_dict, Mapping) else None
        tasks: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        with evaluating(lm), _timed(lm, seconds), skipping(tasks, lm):
            results = evaluate(lm, task_dict, *args, **kwargs)
        if results is not None:
            _record(results, tasks, lm, seconds)
        return results

    return recorded


def record_throughput(results: Any) -> None:
    """Write `model_tokens_per_second`, generated tokens per second of all tasks, into the run's config."""
    configs = [config.get("metadata") or {} for config in results.get("configs", {}).values()]
    costs = [(metadata.get("jrt") or {}).get("costs") or {} for metadata in configs if isinstance(metadata, Mapping)]
    tokens = sum(cost.get("generated_tokens") or 0 for cost in costs)
    seconds = sum(cost.get("seconds") or 0.0 for cost in costs)
    if isinstance(results.get("config"), dict) and tokens and seconds:
        results["config"]["model_tokens_per_second"] = round(tokens / seconds, 3)


@contextmanager
def _timed(lm: Any, seconds: dict[str, float]) -> Iterator[None]:
    """Time the calls of the model object `lm` in this context, by method."""

    def timing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return timed

    methods = {name: getattr(lm, name) for name in METHODS if callable(getattr(lm, name, None))}
    own = {name: vars(lm)[name] for name in methods if name in vars(lm)}
    for name, call in methods.items():
        setattr(lm, name, timing(name, call))
    try:
        yield
    finally:
        for name in methods:
            delattr(lm, name)
        for name, call in own.items():
            setattr(lm, name, call)


def _record(results: Any, tasks: Mapping[str, Any], lm: Any, seconds: Mapping[str, float]) -> None:
    tokenizer, length = tokenizer_of(lm) or _named_tokenizer(tasks), max_length_of(lm)
    requests = {name: list(getattr(task, "instances", None) or []) for name, task in tasks.items()}
    costs = {name: _costs(task, tokenizer, length) if tokenizer else None for name, task in requests.items()}
    weights: dict[str, dict[str, float]] = defaultdict(dict)  # method -> task -> its part of the work
    for name, instances in requests.items():
        known = costs[name] or [Cost(1, 0, 0)] * len(instances)
        for instance, cost in zip(instances, known, strict=True):
            part = weights[instance.request_type]
            part[name] = part.get(name, 0.0) + cost.prompt + cost.generated
    for name, task in tasks.items():
        spent = sum(
            seconds[method] * part[name] / max(1.0, sum(part.values()))
            for method, part in weights.items()
            if name in part and method in seconds
        )
        skipped = skipped_documents(task) if on_truncation(lm) == "skip" else set()
        documents = {instance.doc_id for instance in requests[name]}
        if skipped:
            logger.warning(
                "%s: %d of %d documents are skipped; scores are means over the other %d",
                name, len(skipped), len(documents), len(documents) - len(skipped),
            )  # fmt: skip
        summary = {
            **_sums(len(requests[name]), costs[name]),
            "documents": len(documents),
            "scored": len(documents) - len(skipped),
            "on_truncation": on_truncation(lm),
            "seconds": round(spent, 3),
            "documents_per_second": round(len(documents) / spent, 3) if spent else None,
        }
        config = results.get("configs", {}).get(name)
        if isinstance(config, dict):
            metadata = config["metadata"] = dict(config.get("metadata") or {})
            metadata["jrt"] = {**(metadata.get("jrt") or {}), "costs": summary}
        _record_samples(
            (results.get("samples") or {}).get(name, []), requests[name], costs[name] or [], on_truncation(lm)
        )


def _named_tokenizer(tasks: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the run's arguments name, which lm-eval puts into every task's metadata."""
    for task in tasks.values():
        metadata = getattr(getattr(task, "config", None), "metadata", None)
        if isinstance(metadata, Mapping) and metadata.get("tokenizer"):
            try:
                return tokenization.resolve(metadata)
            except UserError:
                return None
    return None


def _sums(requests: int, costs: list[Cost] | None) -> dict[str, Any]:
    return {
        "requests": requests,
        "prompt_tokens": sum(cost.prompt for cost in costs) if costs else None,
        "generated_tokens": sum(cost.generated for cost in costs) if costs else None,
        "truncated": sum(cost.cut > 0 for cost in costs) if costs else None,
    }


def _record_samples(samples: list[Any], instances: list[Any], costs: list[Cost], on_longer: str) -> None:
    by_document: dict[Any, list[Cost]] = defaultdict(list)
    for instance, cost in zip(instances, costs, strict=False):  # no costs without a tokenizer
        by_document[instance.doc_id].append(cost)
    for sample in samples:
        if own := by_document.get(sample.get("doc_id")):
            cut = sum(cost.cut for cost in own)
            sample["jrt_cost"] = {
                "prompt_tokens": sum(cost.prompt for cost in own),
                "generated_tokens": sum(cost.generated for cost in own),
                "tokens_cut": cut,
                "cut_from": SIDE.get(on_longer) if cut else None,
            }


def _costs(instances: list[Any], tokenizer: Tokenizer, length: int | None) -> list[Cost]:
    """The cost of each request, in order."""
    prompts = tokenizer.count([prompt_text(instance.args[0]) for instance in instances])
    generates = [instance.request_type == "generate_until" for instance in instances]
    texts = [
        "".join(map(str, instance.resps)) if generated else "".join(map(str, instance.args[1:2]))
        for instance, generated in zip(instances, generates, strict=True)
    ]
    answers = tokenizer.count(texts)
    costs = []
    for instance, generated, prompt, answer in zip(instances, generates, prompts, answers, strict=True):
        room = None if length is None else length - _new_tokens(instance) if generated else length + 1 - answer
        rolling = instance.request_type == "loglikelihood_rolling"  # its text is scored in windows, and nothing is cut
        cut = recorded_cut(instance)
        if cut is None:
            cut = 0 if room is None or rolling else max(0, prompt - room)
        costs.append(Cost(prompt, answer, cut))
    return costs


def _new_tokens(instance: Any) -> int:
    options = instance.args[1] if len(instance.args) > 1 else None
    return new_tokens(options if isinstance(options, Mapping) else None)
