"""Gated linear attention (GLA, RetNet), in PyTorch."""

from __future__ import annotations

from jrt_eval.kernels.gated_linear_attention.reference import gated_linear_attention

__all__ = ["gated_linear_attention"]
