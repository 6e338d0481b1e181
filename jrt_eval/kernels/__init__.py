"""The operators of recurrent models: one folder each, with a PyTorch reference and faster implementations.

Tensors are (batch, length, heads, dim) unless said otherwise. Inputs are float32, bfloat16 or float16 (the reference also takes
float64), of any strides; outputs have the dtype of v; sums and states are float32 (float64 for float64). Rows of a batch are
padded on the right: causality keeps the outputs before the padding exact, and `mask` or `lengths` keep padding out of the final
states. `backend` is "auto" or a name in `jrt_eval.kernels.dispatch.BACKENDS`; "torch" is the reference, differentiable, on any
device. Wrong shapes, dtypes, devices and backends raise UserError.
"""

from __future__ import annotations

from jrt_eval.kernels import dispatch
from jrt_eval.kernels.causal_dot_product import causal_dot_product
from jrt_eval.kernels.compiled import Status, status
from jrt_eval.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from jrt_eval.kernels.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from jrt_eval.kernels.selective_scan import selective_scan, selective_scan_step
from jrt_eval.kernels.short_conv import short_conv, short_conv_step
from jrt_eval.kernels.sliding_window_attention import (
    WindowState,
    sliding_window_attention,
    sliding_window_attention_step,
)
from jrt_eval.kernels.ssd import ssd, ssd_step
from jrt_eval.kernels.taylor_linear_attention import (
    TaylorState,
    encode_prefix,
    feature_map,
    num_features,
    prefix_linear_attention,
    taylor_linear_attention,
    taylor_linear_attention_step,
)

__all__ = [
    "Status",
    "TaylorState",
    "WindowState",
    "causal_dot_product",
    "encode_prefix",
    "feature_map",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "gated_linear_attention",
    "gated_linear_attention_step",
    "num_features",
    "prefix_linear_attention",
    "selective_scan",
    "selective_scan_step",
    "short_conv",
    "short_conv_step",
    "sliding_window_attention",
    "sliding_window_attention_step",
    "ssd",
    "ssd_step",
    "status",
    "taylor_linear_attention",
    "taylor_linear_attention_step",
]

dispatch.load()
