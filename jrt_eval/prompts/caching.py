"""A key for lm-eval's cache of requests (`--cache_requests`), which lm-eval itself makes of the task's name alone."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from typing import Any


def prompt_key(*parts: Any) -> str:
    """A hash of everything that decides a prompt: settings as JSON-like values, functions and classes by their source."""
    text = json.dumps(parts, sort_keys=True, default=_code)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _code(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    if not callable(value):
        return f"{type(value).__name__} {value!r}"
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
