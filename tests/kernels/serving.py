"""Which backend a test of the CUDA module runs on for an operator that only Triton has."""

from __future__ import annotations

import pytest

from jrt_eval.kernels.dispatch import BACKENDS, OPERATORS


def serving(backend: str, operator: str) -> str:
    """`backend`, or "triton" where that is "cuda" and has no such operator."""
    having = next(functions[operator] for functions in OPERATORS.values() if operator in functions)
    if backend != "cuda" or "cuda" in having or "triton" not in having:
        return backend
    if BACKENDS["triton"].missing is not None:
        pytest.skip(f"no Triton kernels here: {BACKENDS['triton'].missing}")
    return "triton"
