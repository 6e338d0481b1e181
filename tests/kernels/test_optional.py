"""Modules that may be missing."""

from __future__ import annotations

from jrt_eval.kernels.optional import triton_module


def test_a_module_or_none() -> None:
    assert triton_module("jrt_eval.kernels.taylor_linear_attention.features") is not None
    assert triton_module("jrt_eval.kernels.no_such_module") is None
