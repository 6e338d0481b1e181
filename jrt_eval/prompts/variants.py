"""Variants of a prompt: how often the model reads a passage, and controls that tell what helps.

A variant decides what comes before the last reading of the passage:

    once            nothing
    question_first  the question
    twice           the question, the passage
    thrice          the question, the passage, the passage
    verbose         the question, the passage, "Let me repeat that:"
    padded          neutral text, as long as what `twice` has there

`padded` controls for the longer prompt, `question_first` for the earlier question. The name of a task with a variant
is the task's name with the variant as its suffix (`jrt_fda_twice`, `arc_easy_padded`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from jrt_eval.errors import UserError, nearest

VARIANTS = ("once", "twice", "thrice", "question_first", "padded", "verbose")
REPEAT_CUE = "Let me repeat that:"
# Neutral in the sense that it has no names, numbers or questions that a passage could be confused with.
NEUTRAL = "The grass is green. The sky is blue. The water is clear. The wind is calm. The road is long. "

Filler = Callable[[str], str]  # text -> neutral text of the same length


def check_variant(name: object) -> str:
    """`name` if it is a variant. Raises `UserError`."""
    if name not in VARIANTS:
        raise UserError(f"unknown variant {name!r}{nearest(str(name), list(VARIANTS))}: use {', '.join(VARIANTS)}")
    return str(name)


def split_name(name: str) -> tuple[str, str] | None:
    """`("arc_easy", "twice")` for `arc_easy_twice`; None for a name without a variant's suffix."""
    for variant in VARIANTS:
        base = name.removesuffix(f"_{variant}")
        if base and base != name:
            return base, variant
    return None


def before_last_reading(
    variant: str, *, opening: str, first: str, again: str, filler: Filler, separator: str = "\n"
) -> str:
    """What a prompt of this variant has in front of the last reading.

    opening: the question alone, with the blank that follows it. first: the question and the first reading. again: a
    further reading. filler: makes neutral text as long as its argument. separator: between two readings.
    """
    match variant:
        case "once":
            return ""
        case "question_first":
            return opening
        case "twice":
            return first + separator
        case "thrice":
            return first + separator + again + separator
        case "verbose":
            return first + separator + REPEAT_CUE + separator
        case _:
            return filler(first) + separator


def neutral_characters(text: str) -> str:
    """Neutral text with as many characters as `text`: for runs in which no tokenizer is known."""
    copies = len(text) // len(NEUTRAL) + 1
    return (NEUTRAL * copies)[: len(text)].rstrip()


def neutral_tokens(count: Callable[[str], int]) -> Filler:
    """A filler that matches lengths in tokens. `count`: tokens of a text, without special tokens."""

    words = NEUTRAL.split()

    def fill(text: str) -> str:
        wanted = count(text)
        # A word has at least one token, so that no more than `wanted` words fit.
        fit = bisect_right(range(wanted + 1), wanted, key=lambda number: count(_words(words, number)))
        return _words(words, fit - 1)

    return fill


def _words(words: list[str], number: int) -> str:
    return " ".join(words[index % len(words)] for index in range(number))
