"""Modules of Triton kernels, which not every installation can import."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any


@cache
def triton_module(name: str) -> Any:
    """The module of this name, or None where there is no Triton; imported when it is first asked for."""
    try:
        return import_module(name)
    except ImportError:
        return None
