"""What a prompt is made of: a document's passage, question and cue, as pure functions of its fields.

A style is how the original cleans one family of documents (swde, fda, squad, drop, nq, triviaqa) or `plain`, for new
data sets. It yields `Parts`; the task's YAML says how they are put together:

    once    {{jrt_passage}} {{jrt_cue}}
    twice   {{jrt_question}} {{jrt_passage}} <newline> {{jrt_passage}} {{jrt_cue}}

The orders in which white space and dots are stripped look arbitrary and are not: scores are compared with published
ones, and a stray blank before the answer has cost ports of this method twenty points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jrt_eval.errors import UserError, nearest

VARIANTS = ("once", "twice")
SWDE_MARKER = "Summary of information above..."
TRIVIAQA_MARKS = ("[PAR]", "[DOC]", "[TLE]")


class Parts(NamedTuple):
    """passage: the cleaned document; question: what a twice prompt opens with; cue: what every prompt ends with.

    first: the passage's first reading, where it differs from the second (squad reads another field first).
    """

    passage: str
    question: str
    cue: str
    first: str | None = None


Style = Callable[[Mapping[str, Any], str, str], Parts]


def cut_echo(passage: str, question: str, *, repeatedly: bool = True, match_case: bool = False) -> str:
    """`passage` without the `question` that it ends with: the passage of a cloze task often ends with the cloze."""

    def echoes() -> bool:
        if match_case:
            return passage.endswith(question)
        return passage.lower().endswith(question.lower())

    while question and passage and echoes():
        passage = passage[: -len(question)]
        if not repeatedly:
            break
    return passage


def capitalised(key: str) -> str:
    """`key` with its first letter upper-cased and the rest as it is."""
    return key[:1].upper() + key[1:]


def swde(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    key = doc["key"]
    text = cut_echo(doc[field].split(SWDE_MARKER, 1)[0], f"{key}:")
    if variant == "once":
        passage = text.strip("\n").strip().strip("\n").strip().strip(".") + "."
    else:
        passage = text.strip("\n").strip(".").strip().strip("\n").strip()
        passage = passage if passage.endswith(".") else passage + "."
    return Parts(passage, f"Information about {capitalised(key)}.", f"{capitalised(key)}:")


def fda(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    key = doc["key"]
    passage = cut_echo(doc[field], f"{key}:").strip("\n").strip(".") + "."
    return Parts(passage, f"Information about {capitalised(key)}.", f"{capitalised(key)}:")


def squad(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    """The text ends with its own cloze, so there is no cue; a twice prompt reads the bare paragraph first."""
    return Parts(doc[field].strip(), doc["question"].strip(), "", first=doc["context"].split("Question:", 1)[0])


def _cloze(context: str, doc: Mapping[str, Any], variant: str, question: str, once_only: bool = False) -> Parts:
    cue = doc["question"].strip()
    passage = cut_echo(
        context, cue, repeatedly=not (once_only and variant == "once"), match_case=once_only and variant == "once"
    )
    passage = passage.strip().strip(".")
    return Parts((passage if variant == "once" else passage.strip()) + ".", question, cue)


def drop(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    return _cloze(doc[field].strip(), doc, variant, doc["orig_question"].strip(":"))


def nq(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    return _cloze(doc[field].strip(), doc, variant, doc["orig_question"].strip(":"), once_only=True)


def triviaqa(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    context = doc[field].strip()
    for mark in TRIVIAQA_MARKS:
        context = context.replace(mark, "")
    return _cloze(context, doc, variant, doc["orig_question"])


def plain(doc: Mapping[str, Any], field: str, variant: str) -> Parts:
    """The passage stripped, without the cue where it ends with it; question and cue as the task's YAML gives them."""
    cue, question = doc["jrt_cue"].strip(), doc["jrt_question"].strip()
    return Parts(cut_echo(doc[field].strip(), cue).strip(), question, cue)


STYLES: dict[str, Style] = {
    "plain": plain,
    "swde": swde,
    "fda": fda,
    "squad": squad,
    "drop": drop,
    "nq": nq,
    "triviaqa": triviaqa,
}


def variant_of(name: Any) -> str:
    """`once` (also written `default`) or `twice`, else `UserError`."""
    if name == "default":
        return "once"
    if name not in VARIANTS:
        raise UserError(f"unknown variant {name!r}{nearest(str(name), [*VARIANTS, 'default'])}: it is once or twice")
    return str(name)


def style_of(name: Any) -> Style:
    """The style called `name`, else `UserError`."""
    if name not in STYLES:
        raise UserError(f"unknown style {name!r}{nearest(str(name), list(STYLES))}: it is one of {', '.join(STYLES)}")
    return STYLES[name]


def parts(style: str, variant: str, doc: Mapping[str, Any], field: str) -> Parts:
    """The parts of a document's prompt. `field` names the (windowed) document in `doc`.

    Raises `UserError` for an unknown style or variant.
    """
    return style_of(style)(doc, field, variant_of(variant))
