"""JSON as Python's `json` module writes it: NaN, Infinity, lone surrogates and very long numbers are read, not refused."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(raw: bytes) -> Any:
    """Parse JSON. Raises ValueError with one short line.

    Strict JSON is read by orjson. Anything else is read by the standard library: `NaN` and `Infinity` become floats,
    integers beyond 64 bits become floats, bytes that are not UTF-8 and lone surrogates become U+FFFD.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return _clean(json.loads(raw.decode("utf-8", "replace"), parse_int=_integer))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dumps(value: Any) -> bytes:
    """Compact JSON with sorted keys; what JSON cannot hold becomes text. Raises ValueError if it is nested too deeply."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def whole_text(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {whole_text(key): _clean(item) for key, item in value.items()}
    return value
