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

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.metrics import is_higher_better, is_share
from jrt_eval.analysis.notes import Notes
from jrt_eval.analysis.pairing import DOCUMENT, find_arms
from jrt_eval.analysis.schema import METRIC_PREFIX
from jrt_eval.errors import UserError

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
    return "from_document" if _occurs(given, prompt.lower()) else "not_in_document"


def _occurs(given: str, text: str) -> bool:
    """Whether these words occur in the text in this order, with anything but words between them."""
    words = given.split(" ")
    if not all(word in text for word in words):  # most answers end here; the search below is slow
        return False
    return re.search(r"(?<!\w)" + r"\W+".join(map(re.escape, words)) + r"(?!\w)", text) is not None


def failure_table(results: Results, metric: str, *, filter_name: str | None = None) -> pd.DataFrame:
    """Counts: a row per model, data set and variant, a column per mode, and n. An answer is correct above one half.

    Raises UserError for a metric that does not say whether an answer is correct.
    """
    if not tells_correct(results, metric):
        raise UserError(f"{metric} does not say which answers are correct: choose a share that is better when higher")
    column = METRIC_PREFIX + metric
    rows = []
    for arm in find_arms(results, metric, Notes(), filter_name=filter_name):
        counts = dict.fromkeys(MODES, 0)
        for unit in arm.units:
            frame = results.read(unit, ["filter", *DOCUMENT, column, "generation", "prompt"])
            frame = frame[(frame["filter"] == arm.filter) & frame[column].notna()].drop_duplicates(list(DOCUMENT))
            wrong = frame[frame[column] <= 0.5]
            counts["correct"] += len(frame) - len(wrong)
            texts = [wrong[name].fillna("").to_numpy(dtype=object) for name in ("generation", "prompt")]
            for generation, prompt in zip(*texts, strict=True):
                counts[failure_mode(generation, prompt, False)] += 1
        rows.append({"model": arm.label, "dataset": arm.shown, "variant": arm.variant, **counts})
    table = pd.DataFrame(rows, columns=["model", "dataset", "variant", *MODES])
    return table.assign(n=table[list(MODES)].sum(axis=1)).sort_values(
        ["model", "dataset", "variant"], ignore_index=True
    )


def tells_correct(results: Results, metric: str) -> bool:
    """Whether a document's metric says if its answer is correct: it is a share, and higher is better."""
    rows = results.scores[results.scores["metric"] == metric]
    stated = rows["higher_is_better"].dropna()
    higher = is_higher_better(metric, bool(stated.iloc[0]) if len(stated) else None)
    return higher is not False and is_share(metric, rows["value"])


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
