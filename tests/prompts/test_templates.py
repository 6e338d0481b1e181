"""Templates render over a row, and nothing else."""

from __future__ import annotations

import pytest

from jrt_eval.errors import UserError
from jrt_eval.prompts.templates import field_or_template

ROW = {"ask": "Who?", "number": 3}


def test_a_field_or_a_template() -> None:
    assert field_or_template("here", "question", "ask", ROW) == "Who?"
    assert field_or_template("here", "question", "{{ask}} {{number}}\n", ROW) == "Who? 3\n"
    assert field_or_template("here", "question", "Plain text", ROW) == "Plain text"
    assert field_or_template("here", "question", "{{ask | regex_replace('W', 'w')}}", ROW) == "who?"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ask.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ ask.format.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(ask) }}",
        "{{ missing }}",
        "{{ ask",
        "{{ 1 / 0 }}",
        "{{ number + ask }}",
    ],
)
def test_what_fails_fails_in_a_line(template: str) -> None:
    with pytest.raises(UserError, match="here: the template of 'question'") as error:
        field_or_template("here", "question", template, ROW)
    assert "\n" not in str(error.value)


def test_a_field_that_is_no_text() -> None:
    with pytest.raises(UserError, match="'number' must be a string"):
        field_or_template("here", "question", "number", ROW)
