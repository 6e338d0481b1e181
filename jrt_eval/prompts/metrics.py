"""Scores of one generation against its gold answers, each in [0, 1] and averaged with lm-eval's `mean`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def contains(generation: str, answers: Sequence[str]) -> float:
    """1 if any answer occurs in the generation as a literal, ignoring case. The headline metric of the paper.

    A blank answer, which would occur in every generation, counts as none.
    """
    return float(any(a.strip() and re.search(re.escape(a), generation, re.IGNORECASE) for a in answers))


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(generation: str, answers: Sequence[str]) -> float:
    """1 if the normalised generation is one of the normalised answers."""
    return float(normalise(generation) in _gold(answers))


def f1(generation: str, answers: Sequence[str]) -> float:
    """The best F1 over the answers, of the multisets of normalised words; 1 if both are empty, 0 if one is."""
    return max((_f1(normalise(generation).split(), answer.split()) for answer in _gold(answers)), default=0.0)


def _gold(answers: Sequence[str]) -> list[str]:
    """Normalised answers. One that is left empty ("The", "...") counts only where no other answer has any words."""
    normalised = [normalise(answer) for answer in answers]
    return [answer for answer in normalised if answer] or normalised


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold))


METRICS = {"contains": contains, "exact_match": exact_match, "f1": f1}


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results`: every metric of the one generation in `results` against `doc["jrt_answers"]`."""
    generation = results[0]
    return {name: metric(generation, doc["jrt_answers"]) for name, metric in METRICS.items()}
