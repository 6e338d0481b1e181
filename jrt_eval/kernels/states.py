"""What a recurrent mixer carries from one call to the next."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TaylorState(NamedTuple):
    """The two sums of linear attention, float32 (float64 for float64 inputs)."""

    kv: Tensor  # (batch, heads, features, head_dim): sum of phi(k) v^T, decayed where decay is given
    k: Tensor  # (batch, heads, features): sum of phi(k), never decayed


class WindowState(NamedTuple):
    """The last `window` keys and values of each row: token t stands at slot t % window."""

    k: Tensor  # (batch, window, heads, head_dim)
    v: Tensor  # (batch, window, heads, head_dim)
    length: Tensor  # (batch,) int64: tokens seen by each row
