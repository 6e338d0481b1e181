"""Prompts that are longer than the model's input: from which side a model cuts them, and scores without skipped ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jrt_eval.errors import UserError

SIDE = {"left": "left", "middle": "middle", "skip": "skipped"}


def on_truncation(model: Any) -> str:
    """What the model object does with a longer prompt: left, middle, skip or fail. All models but ours cut from the left."""
    return str(getattr(model, "on_truncation", "left"))


def recorded_cut(instance: Any) -> int | None:
    """The tokens of a request that exceeded the model's input, where the model recorded them."""
    cut = getattr(instance, "jrt_tokens_cut", None)
    return cut if isinstance(cut, int) else None


def skipped_documents(task: Any) -> set[Any]:
    """The documents of a task, by lm-eval's doc_id, that have a request which the model skipped."""
    return {instance.doc_id for instance in getattr(task, "instances", None) or [] if recorded_cut(instance)}


@contextmanager
def skipping(tasks: Mapping[str, Any], model: Any) -> Iterator[None]:
    """In this context, documents that the model skips have no scores: means are over the other documents.

    Raises `UserError` for a model behind lm-eval's cache of answers.
    """
    chosen = list(tasks.values()) if on_truncation(model) == "skip" else []
    if chosen and hasattr(model, "dbdict"):  # lm-eval's CachingLM
        raise UserError("on_truncation=skip does not work with --use_cache, which would keep the empty answers")
    for task in chosen:
        _leave_out(task)
    try:
        yield
    finally:
        for task in chosen:
            del task.doc_iterator, task.process_results


def _leave_out(task: Any) -> None:
    iterate: Callable[..., Iterator[tuple[Any, Any]]] = task.doc_iterator
    score: Callable[..., dict[str, Any]] = task.process_results
    current: list[Any] = [None]
    skipped: list[set[Any]] = []  # found once, when the first document is scored: all answers are there by then

    def doc_iterator(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        for doc_id, doc in iterate(*args, **kwargs):
            current[0] = doc_id
            yield doc_id, doc

    def process_results(doc: Any, results: Any) -> dict[str, Any]:
        if not skipped:
            skipped.append(skipped_documents(task))
        return {} if current[0] in skipped[0] else score(doc, results)

    # lm-eval scores the documents in the order in which it iterates over them.
    task.doc_iterator, task.process_results = doc_iterator, process_results
