"""The Python face of the compiled kernels: one function per operator, each with a PyTorch reference.

`api` has the operators, `reference` says in PyTorch what they compute, `registry` which implementation a call takes.
"""

from __future__ import annotations

from jrt_eval.kernels.api import (
    causal_dot_product,
    encode_prefix,
    gated_short_conv,
    gated_short_conv_step,
    prefix_linear_attention,
    sliding_window_attention,
    sliding_window_step,
    taylor_linear_attention,
    taylor_step,
)
from jrt_eval.kernels.compiled import Status, status
from jrt_eval.kernels.features import feature_map, num_features
from jrt_eval.kernels.states import TaylorState, WindowState

__all__ = [
    "Status",
    "TaylorState",
    "WindowState",
    "causal_dot_product",
    "encode_prefix",
    "feature_map",
    "gated_short_conv",
    "gated_short_conv_step",
    "num_features",
    "prefix_linear_attention",
    "sliding_window_attention",
    "sliding_window_step",
    "status",
    "taylor_linear_attention",
    "taylor_step",
]
