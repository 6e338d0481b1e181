"""Corner cases of cleaning and scoring that the golden files do not hold."""

from __future__ import annotations

from typing import Any

import pytest

from jrt_eval.errors import UserError
from jrt_eval.prompts.clean import capitalised, cut_echo, parts
from jrt_eval.prompts.metrics import contains, exact_match, f1, normalise

CLOZE = {"question": " It is ", "orig_question": ":What is it?:"}


def passage(style: str, variant: str, text: str, **doc: Any) -> str:
    return parts(style, variant, {"text": text, **CLOZE, **doc}, "text").passage


def test_echo_is_cut_as_long_as_it_is_there() -> None:
    assert cut_echo("a key:KEY:Key:", "key:") == "a "
    assert cut_echo("a key:key:", "key:", repeatedly=False) == "a key:"
    assert cut_echo("a KEY:", "key:", match_case=True) == "a KEY:"
    assert cut_echo("text", "") == "text"
    assert cut_echo("", "key:") == ""


def test_key_keeps_the_rest_of_its_case() -> None:
    assert [capitalised(key) for key in ("bPG per game", "", "élan")] == ["BPG per game", "", "Élan"]


@pytest.mark.parametrize("style", ["swde", "fda"])
def test_key_families(style: str) -> None:
    made = parts(style, "twice", {"text": "The maker is Acme.\n", "key": "maker"}, "text")
    assert (made.question, made.cue) == ("Information about Maker.", "Maker:")
    assert made.passage == "The maker is Acme."


def test_swde_marker_and_dots() -> None:
    text = "\n \n ..A page...\n \nSummary of information above...\nrating: 5 Summary of information above..."
    assert passage("swde", "once", text, key="rating") == "A page."
    assert passage("swde", "twice", " one.  ", key="rating") == "one."
    assert passage("swde", "once", "no marker here", key="rating") == "no marker here."


@pytest.mark.parametrize(
    ("style", "variant", "expected"),
    [
        ("drop", "once", "A passage."),
        ("drop", "twice", "A passage."),
        ("nq", "once", "A passage. It is."),  # cut once, and only in the same case
        ("nq", "twice", "A passage."),
        ("triviaqa", "once", "A passage."),
    ],
)
def test_echo_of_a_cloze(style: str, variant: str, expected: str) -> None:
    assert passage(style, variant, " A passage. It isIt is ") in (expected, expected.replace("It is.", "It is."))


def test_questions() -> None:
    doc = {"text": "x", **CLOZE}
    assert parts("drop", "twice", doc, "text").question == "What is it?"
    assert parts("triviaqa", "twice", doc, "text").question == ":What is it?:"
    assert parts("drop", "once", doc, "text").cue == "It is"


def test_triviaqa_marks() -> None:
    assert passage("triviaqa", "once", "[TLE] A [PAR] b [DOC]") == "A  b."


def test_squad_reads_the_paragraph_first() -> None:
    doc = {"text": " text cloze ", "question": " q? ", "context": "para Question: q Question: r"}
    made = parts("squad", "twice", doc, "text")
    assert (made.first, made.question, made.passage, made.cue) == ("para ", "q?", "text cloze", "")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown variant 'thrise'"):
        parts("drop", "thrise", {"text": "x", **CLOZE}, "text")
    with pytest.raises(UserError, match=r"unknown style 'swd' \(did you mean 'swde'\?\)"):
        parts("swd", "once", {"text": "x"}, "text")


@pytest.mark.parametrize(
    ("generation", "answers", "expected"),
    [
        ("it is PARIS.", ["paris"], 1), ("c++ code", ["C++"], 1), ("cc code", ["c+"], 0), ("a.b", ["a?b"], 0),
        ("", ["x"], 0), ("x", [], 0), ("no", ["yes", "NO"], 1), ("ſ", ["s"], 1),
        ("anything", [""], 0), ("a thing", ["x", " "], 0),
    ],
)  # fmt: skip
def test_contains(generation: str, answers: list[str], expected: int) -> None:
    assert contains(generation, answers) == expected


def test_normalise() -> None:
    assert normalise("The  Cat, an ANT; a b-c!") == "cat ant bc"


@pytest.mark.parametrize(
    ("generation", "answers", "match", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("the tall Eiffel Tower", ["Eiffel Tower"], 0, 0.8),
        ("red red", ["red"], 0, 2 / 3),
        ("blue", ["red", "Blue."], 1, 1),
        ("the", ["a"], 1, 1),  # both empty after normalisation
        ("", ["x"], 0, 0),
        ("x", [], 0, 0),
        ("", ["Ms Zorblax", "..."], 0, 0),  # nothing is left of the second after normalisation
        ("the", ["Ms Zorblax", ""], 0, 0),
    ],
)
def test_squad_metrics(generation: str, answers: list[str], match: float, overlap: float) -> None:
    assert exact_match(generation, answers) == match
    assert f1(generation, answers) == pytest.approx(overlap)
