"""The gated delta rule (DeltaNet, Gated DeltaNet, KDA), in PyTorch."""

from __future__ import annotations

from jrt_eval.kernels.gated_delta_rule.reference import gated_delta_rule

__all__ = ["gated_delta_rule"]
