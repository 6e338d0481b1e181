"""The parts of a prompt: a document's passage, question and cue, as pure functions of its fields.

A style is how the original evaluation cleans one family of documents (swde, fda, squad, drop, nq, triviaqa), or
`plain` for new data sets. It returns `Parts`, which `prompt` puts together:

    once    passage cue
    twice   question passage <newline> passage cue

The orders in which white space and dots are stripped look arbitrary but matter: scores are compared with published
ones, and a stray blank before the answer has cost ports of this method twenty points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jrt_eval.errors import UserError, nearest
from jrt_eval.prompts.variants import Filler, before_last_reading, check_variant

SWDE_MARKER = "Summary of information above..."
TRIVIAQA_MARKS = ("[PAR]", "[DOC]", "[TLE]")


class Parts(NamedTuple):
    """passage: the cleaned document. question: what a read-twice prompt begins with. cue: what every prompt ends with.

    first: the earlier readings of the passage, where they differ from the last (squad reads another field first).
    """

    passage: str
    question: str
    cue: str
    first: str | None = None


Style = Callable[[Mapping[str, Any], str, str], Parts]


def cut_echo(passage: str, question: str, *, repeatedly: bool = True, match_case: bool = False) -> str:
    """`passage` without the `question` at its end: the passage of a cloze task often ends with the cloze."""
    tail = question if match_case else question.lower()
    end = len(passage)
    while tail and end > 0:
        last = passage[max(0, end - len(question)) : end]
        # Lower-casing may change a length ("İ"), so the characters that are cut must match by themselves.
        if (last if match_case else last.lower()) != tail:
            break
        end -= len(question)
        if not repeatedly:
            break
    return passage[: max(0, end)]


def capitalised(key: str) -> str:
    """`key` with its first letter in upper case and the rest unchanged."""
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
    """The text ends with its own cloze, so there is no cue. Earlier readings are of the bare paragraph."""
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


def style_of(name: Any) -> Style:
    """The style called `name`, else `UserError`."""
    if name not in STYLES:
        raise UserError(f"unknown style {name!r}{nearest(str(name), list(STYLES))}: it is one of {', '.join(STYLES)}")
    return STYLES[name]


def parts(style: str, variant: str, doc: Mapping[str, Any], field: str) -> Parts:
    """The parts of a document's prompt. `field` names the (windowed) document in `doc`.

    `once` has a cleaning of its own; all other variants share the one of `twice`, so that they differ from it in
    nothing else. Raises `UserError` for an unknown style or variant.
    """
    return style_of(style)(doc, field, check_variant(variant))


def prompt(parts: Parts, variant: str, filler: Filler) -> str:
    """The prompt of a variant. It never ends with a blank."""
    earlier = parts.passage if parts.first is None else parts.first
    before = before_last_reading(
        variant,
        opening=f"{parts.question} ",
        first=f"{parts.question} {earlier}",
        again=earlier,
        filler=filler,
    )
    return f"{before}{parts.passage} {parts.cue}" if parts.cue else before + parts.passage
