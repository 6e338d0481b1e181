"""Checked values of a JSON config: each read says which key must have which type and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, overload

from jrt_eval.errors import UserError

# Larger sizes than any model has. A config that exceeds them would exhaust memory before its weights are compared.
LARGEST = 2**31 - 1


class Section:
    """One object of a config, and where it is in the file, for error messages."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix
        self.read: set[str] = set()

    def error(self, what: str) -> UserError:
        return UserError(f"{self.source}: {self.prefix}{what}")

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.values.get(key, default)

    @overload
    def integer(self, key: str, default: int, low: int = ..., high: int = ...) -> int: ...

    @overload
    def integer(self, key: str, default: int | None = ..., low: int = ..., high: int = ...) -> int | None: ...

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int | None:
        """An integer from `low` to `high`; `default` where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if not _is_number(value) or value != int(value) or not low <= value <= high:
            bounds = f"of at least {low}" if high == LARGEST else f"from {low} to {high:,}"
            raise self.error(f"{key} is {short(value)}, it must be an integer {bounds}")
        return int(value)

    def size(self, key: str, high: int = LARGEST) -> int:
        """An integer of at least 1 that must be present."""
        value = self.integer(key, None, 1, high)
        if value is None:
            raise self.error(f"{key} is {'null' if key in self.values else 'missing'}, an integer is needed")
        return value

    @overload
    def number(self, key: str, default: float, low: float = ..., high: float = ..., *, above: bool = ...) -> float: ...

    @overload
    def number(
        self, key: str, default: None = ..., low: float = ..., high: float = ..., *, above: bool = ...
    ) -> float | None: ...

    def number(
        self,
        key: str,
        default: float | None = None,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        above: bool = False,
    ) -> float | None:
        """A finite number from `low` to `high`, or with `above` one greater than `low`; `default` where absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if not _is_number(value) or not low <= value <= high or (above and value == low):
            lower = "" if low == -math.inf else f" above {low:g}" if above else f" of at least {low:g}"
            upper = "" if high == math.inf else f"{' and' if lower else ''} at most {high:g}"
            raise self.error(f"{key} is {short(value)}, it must be a finite number{lower}{upper}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false; 0 and 1 count as these, and null as false."""
        value = self.get(key, default)
        if value not in (None, True, False):
            raise self.error(f"{key} is {short(value)}, it must be true or false")
        return bool(value)

    def only(self, key: str, *allowed: Any, default: Any) -> None:
        """Refuse a value that is not supported."""
        if (value := self.get(key, default)) not in allowed:
            raise self.error(f"{key} is {short(value)}, only {' or '.join(map(repr, allowed))} is supported")

    def refuse_unread(self, kind: str) -> None:
        """Refuse keys that nobody has read: they may change the arithmetic."""
        left = sorted(k for k, v in self.values.items() if k not in self.read and v is not None)
        if left:
            raise self.error(f"({kind}) has {', '.join(f'{k}={short(self.values[k])}' for k in left)}: not supported")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 10**300  # float() raises beyond


def short(value: Any) -> str:
    """`value` for an error message, at most 80 characters."""
    text = (
        repr(value) if not isinstance(value, int) or abs(value) < 10**40 else f"an integer of {value.bit_length()} bits"
    )
    return text if len(text) <= 80 else text[:77] + "..."
