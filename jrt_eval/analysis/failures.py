"""What kind of mistake a wrong answer is, by rules that read only the generation and the prompt.

The first rule that fits, in this order:

    correct           the metric says so (contains: a gold answer occurs in the generation)
    empty             the generation has no letter and no digit
    repetition        one phrase of 1 to 6 words, three times or more in a row, makes up at least half of its words
    from_document     the answer that it gives occurs in the prompt, as whole words, ignoring case and punctuation
    not_in_document   anything else: the answer that it gives is not in the document

The answer given is the generation's first line up to its first sentence end (a full stop, exclamation or question mark
before a blank or the end).
"""

from __future__ import annotations

import re

import pandas as pd

MODES = ("correct", "empty", "repetition", "from_document", "not_in_document")

_WORD = re.compile(r"\w+")
_END = re.compile(r"[.!?](?=\s|$)")


def failure_mode(generation: str, prompt: str, correct: bool) -> str:
    """The mode of one prediction: one of MODES."""
    if correct:
        return "correct"
    words = _WORD.findall(generation.lower())
    if not words:
        return "empty"
    if _repeats(words):
        return "repetition"
    first = next((line for line in generation.splitlines() if _WORD.search(line)), "")
    given = " ".join(_WORD.findall(_END.split(first.strip(), maxsplit=1)[0].lower())) or " ".join(words)
    return "from_document" if f" {given} " in f" {' '.join(_WORD.findall(prompt.lower()))} " else "not_in_document"


def failure_modes(predictions: pd.DataFrame, metric: str) -> pd.Series[str]:
    """The mode of each row; correct means that the metric is 1 (above one half, for a metric between)."""
    columns = zip(
        predictions["generation"].fillna("").astype(object),
        predictions["prompt"].fillna("").astype(object),
        (predictions[f"metric_{metric}"] > 0.5).astype(object),
        strict=True,
    )
    modes = [failure_mode(generation, prompt, bool(correct)) for generation, prompt, correct in columns]
    return pd.Series(pd.Categorical(modes, categories=list(MODES)), index=predictions.index, name="mode")


def failure_table(predictions: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Counts: a row per model, dataset and variant, a column per mode, and n."""
    keys = ["model", "dataset", "variant"]
    frame = predictions[keys].astype(object).assign(mode=failure_modes(predictions, metric))
    counts = frame.groupby([*keys, "mode"], observed=False, dropna=False).size().unstack("mode", fill_value=0)
    counts = counts[list(MODES)]
    counts = counts[counts.sum(axis=1) > 0]
    counts.columns = pd.Index(list(MODES))
    return counts.assign(n=counts.sum(axis=1)).reset_index()


def _repeats(words: list[str]) -> bool:
    for size in range(1, 7):
        start = 0
        while start + 3 * size <= len(words):
            phrase, times = words[start : start + size], 1
            while words[start + times * size : start + (times + 1) * size] == phrase:
                times += 1
            if times >= 3 and 2 * times * size >= len(words):
                return True
            start += 1
    return False
