"""Text from data made safe for where it goes: a terminal, a CSV cell, a Markdown or a LaTeX table."""

from __future__ import annotations

import re

from jrt_eval.analysis.lenient_json import whole_text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\|`*]|(?<=\])(?=\())")
_TEX = {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "−": "$-$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def printable(text: str) -> str:
    """Without control characters, escape sequences and directional marks; line breaks become blanks."""
    return _CONTROL.sub("\ufffd", whole_text(text).replace("\n", " ").replace("\t", " "))


def csv_cell(text: str) -> str:
    """A cell that a spreadsheet takes as text: one that begins like a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown(text: str) -> str:
    """A cell or line of Markdown."""
    escaped = re.sub(r"&(?=#?\w+;)", "&amp;", _MARKDOWN.sub(r"\\\1", printable(text)))
    return escaped.replace("<", "&lt;")


def latex(text: str) -> str:
    """A cell or line of LaTeX, in its default font encoding; a leading minus of a number becomes `$-$`."""
    text = printable(text)
    if re.fullmatch(r"-\d.*", text):
        return "$-$" + latex(text[1:])
    text = re.sub(r"(?<=[\[ ])-(?=\d)", "−", text)
    return "".join(_TEX.get(c, c) for c in text)
