"""Every prompt and score of the original, through lm-eval's own task objects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES = {"swde": "swde", "fda": "fda", "squad": "squad", "drop": "drop", "triviaqa": "triviaqa", "nq": "nq_1024"}


def identity(doc: dict[str, Any]) -> str:
    return str(doc["doc_id"] if "doc_id" in doc else doc["id"])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("variant", ["default", "twice"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_the_originals(family: str, variant: str, shared: Path, load: Callable[..., Any]) -> None:
    cases: dict[Any, dict[str, str | None]] = defaultdict(dict)
    for row in rows(shared / "golden" / "prompts" / "prompts.jsonl"):
        if (row["task"], row["variant"]) == (family, variant):
            cases[row["context_length"], row["answer_length"]][row["doc_id"]] = row["prompt"]
    assert cases
    name = f"jrt_{FAMILIES[family]}" + ("_twice" if variant == "twice" else "")
    for (context_length, answer_length), expected in cases.items():
        task = load(
            name,
            context_length=context_length,
            answer_length=answer_length,
            data_dir=str(shared / "data" / "hub"),
            tokenizer=str(shared / "data" / "gpt2"),
        )
        task.build_all_requests(rank=0, world_size=1)
        got = {identity(instance.doc): instance.args[0] for instance in task.instances}
        assert got == {doc: prompt for doc, prompt in expected.items() if prompt is not None}
        dropped = sum(prompt is None for prompt in expected.values())
        assert task.config.metadata["jrt"]["dropped"] == dropped
        assert task.config.metadata["jrt"]["documents"] == len(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_contains_scores_are_the_originals(family: str, shared: Path, load: Callable[..., Any]) -> None:
    task = load(f"jrt_{FAMILIES[family]}", context_length=None, data_dir=str(shared / "data" / "hub"))
    documents = {identity(doc): doc for doc in task.eval_docs}
    cases = [row for row in rows(shared / "golden" / "prompts" / "metrics.jsonl") if row["task"] == family]
    assert cases
    for case in cases:
        scores = task.process_results(documents[case["doc_id"]], [case["generation"]])
        assert scores["contains"] == case["contains"], case
