"""The exception type for errors that the user can fix."""

from __future__ import annotations

import os
import sys
from types import TracebackType


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong, where, and how to fix it.

    `jrt-eval` and, when our plugin is loaded, `lm_eval` print it without a traceback and exit with status 1. In Python it is an ordinary
    exception. `JRT_EVAL_DEBUG=1` shows the traceback. Line breaks and control characters, which names from files may bring along, are
    escaped.
    """

    def __init__(self, message: object) -> None:
        text = str(message)
        if not text.isprintable():
            text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
        super().__init__(text)


def install_excepthook() -> None:
    """Print an uncaught `UserError` as one line. Other exceptions go to the previous hook. May be called repeatedly."""
    previous = sys.excepthook
    if getattr(previous, "_jrt_eval", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError) and not os.environ.get("JRT_EVAL_DEBUG"):
            print(f"jrt-eval: error: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    hook._jrt_eval = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def nearest(name: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `name`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The exception's type and the first line of its message, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:limit]}" if lines else type(error).__name__
