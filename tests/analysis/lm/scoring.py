"""Metrics of the tests' own lm-eval tasks."""

from __future__ import annotations

from typing import Any


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    said = results[0].lower()
    gold = doc["value"].lower()
    return {"contains": float(gold in said), "exact_match": float(said.strip(" .") == gold)}
