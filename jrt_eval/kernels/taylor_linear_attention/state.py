"""The state of Taylor linear attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TaylorState(NamedTuple):
    """The two sums of linear attention, float32 (float64 for float64 inputs)."""

    kv: Tensor  # (batch, heads, features, head_dim): sum of phi(k) v^T, decayed where decay is given
    k: Tensor  # (batch, heads, features): sum of phi(k), never decayed
