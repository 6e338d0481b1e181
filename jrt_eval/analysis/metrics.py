"""What is known about metrics: which to prefer, which direction is better, which are shares, and what a sample contains.

For some metrics, lm-eval's samples contain the numbers that the metric is computed from. `per_document` turns that into a
number per document whose (weighted) mean orders models as the metric does:

    word_perplexity                    [log-likelihood, words]  -> bits_per_word, weighted by words
    byte_perplexity, bits_per_byte     [log-likelihood, bytes]  -> bits_per_byte, weighted by bytes
    perplexity                         log-likelihood           -> log2_perplexity
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jrt_eval.errors import UserError, nearest

PREFERRED = ("contains", "exact_match", "acc", "f1")

_LOWER = {
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "bits_per_word",
    "log2_perplexity",
    "brier_score",
    "ter",
    "wer",
    "cer",
    "loss",
    "nll",
    "truncated",
}
_NO_SHARE = {"mcc", "brier_score", "likelihood_diff", "loglikelihood", "loss", "nll", "spearman", "pearson"}
_WEIGHTED = {"word_perplexity": "bits_per_word", "byte_perplexity": "bits_per_byte", "bits_per_byte": "bits_per_byte"}


def is_higher_better(metric: str, stated: Any = None) -> bool | None:
    """The direction: as the task states it, else what is known of the metric's name, else None.

    A metric that a sample file contains in another form (`bits_per_word` for `word_perplexity`) has the same direction.
    """
    if isinstance(stated, bool):
        return stated
    if metric in _LOWER:
        return False
    return True if metric in PREFERRED or metric.startswith(("acc", "exact_match", "f1", "em")) else None


def is_share(metric: str, values: Iterable[float]) -> bool:
    """Whether the metric is a share, to be shown in percent: all its values are in [0, 1], and its name allows it."""
    if metric in _NO_SHARE or (metric in _LOWER and metric not in {"truncated", "wer", "cer"}):
        return False
    known = [value for value in values if not math.isnan(value)]
    return bool(known) and all(0 <= value <= 1 for value in known)


def per_document(metric: str, value: Any) -> tuple[str, float, float | None] | None:
    """`(name, number, weight)` of a sample's metric, weight being None for a plain mean; None if it is no number."""
    if isinstance(value, (int, float)):
        number = float(value)
        if metric == "perplexity" and number <= 0:
            return "log2_perplexity", -number / math.log(2), None
        return metric, number, None
    if metric in _WEIGHTED and isinstance(value, list) and len(value) == 2:
        likelihood, weight = value
        if isinstance(likelihood, (int, float)) and isinstance(weight, (int, float)) and weight > 0:
            return _WEIGHTED[metric], -likelihood / weight / math.log(2), float(weight)
    return None


def choose_metric(available: Iterable[str], asked: str | None = None, *, where: str = "in these results") -> str:
    """The metric to show: as asked, else the first of PREFERRED that is available, else the only one.

    Raises UserError for an unknown one, and if there are several and none is preferred.
    """
    known = list(dict.fromkeys(available))
    if asked is not None:
        if asked not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UserError(f"no metric {asked!r} {where}{nearest(asked, known)}: there are {listed}")
        return asked
    preferred = [name for name in PREFERRED if name in known]
    if preferred or len(known) == 1:
        return (preferred or known)[0]
    if not known:
        raise UserError(f"there is no metric {where}")
    raise UserError(f"there are several metrics {where}; choose one with --metric: {', '.join(sorted(known))}")


def choose_filter(filters: Iterable[str], asked: str | None = None) -> str | None:
    """The filter to show of a task's: as asked, else `none`, else the first in the alphabet; None if it has not that one."""
    known = sorted(set(filters))
    if asked is not None:
        return asked if asked in known else None
    return "none" if "none" in known else known[0] if known else None
