"""The state of sliding-window attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class WindowState(NamedTuple):
    """The last `window` keys and values of each row; token t is at slot t % window."""

    k: Tensor  # (batch, window, heads, head_dim)
    v: Tensor  # (batch, window, heads, head_dim)
    length: Tensor  # (batch,) int64: tokens seen by each row
