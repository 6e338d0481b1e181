"""Notes for the reader of a table, grouped: one line per message, with the things that it is about."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 3  # subjects that a line names before it counts the rest


class Notes:
    """Messages with their subjects, in the order in which they were first added."""

    def __init__(self) -> None:
        self._subjects: dict[str, dict[str, None]] = {}

    def add(self, message: str, *subjects: str) -> None:
        """Add a message; its subjects (models, tasks, files) are listed behind it."""
        self._subjects.setdefault(message, {}).update(dict.fromkeys(subjects))

    def lines(self) -> list[str]:
        """`message: a, b, c and 4 more` for each message."""
        return [f"{m}: {listed(s)}" if s else m for m, s in self._subjects.items()]


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """`a, b, c and 4 more`."""
    names = list(names)
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown:,} more"


def counted(count: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
