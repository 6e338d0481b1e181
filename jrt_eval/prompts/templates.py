"""Fields of a row and Jinja templates over a row. Templates render in Jinja's sandbox: they cannot run code."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from jrt_eval.errors import UserError, first_line


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace  # lm-eval's templates have it
    return environment.from_string(template)


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def field_or_template(place: str, part: str, name: str, row: Mapping[str, Any]) -> str:
    """The field `name` of the row, or `name` rendered as a template over the row.

    place, part: for the message of the `UserError` that a wrong type or a failing template raises.
    """
    if name in row:
        if not isinstance(row[name], str):
            raise UserError(f"{place}: field {name!r} must be a string, got {type(row[name]).__name__}")
        return str(row[name])
    from jinja2 import TemplateError

    try:
        return str(_compiled(name).render(**row))
    except (TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"{place}: the template of {part!r}, {name!r}, fails: {first_line(error)}") from None
