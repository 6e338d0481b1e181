"""Dtypes and dimension orders that the PyTorch forms of the operators share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and states: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, length, dim), in `dtype`."""
    return x.transpose(1, 2).to(dtype)


def weighted_sum(weights: Tensor, values: Tensor, sees: Tensor) -> Tensor:
    """weights @ values, where values that are not finite reach only the rows that see them.

    A weight of 0 times NaN is NaN: a plain product would spread a NaN to all rows.

    Args:
        weights: (..., rows, tokens), 0 where `sees` is False
        values: (..., tokens, dim)
        sees: (..., rows, tokens), bool
    """
    finite = values.isfinite()
    reached = sees.to(values.dtype) @ (~finite).to(values.dtype)
    return (weights @ values.where(finite, 0)).masked_fill(reached > 0, torch.nan)


def unmasked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (batch, length, heads, dim) with zeros where mask (batch, length) is 0, whatever x has there."""
    return x if mask is None else x.where((mask != 0)[..., None, None], 0)


def chunks(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, chunks, size, dim), zeros after the end."""
    batch, length, heads, dim = x.shape
    count = -(-length // size)
    x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.to(dtype).view(batch, count, size, heads, dim).permute(0, 3, 1, 2, 4)


def joined(y: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(batch, heads, chunks, size, dim) -> (batch, length, heads, dim)."""
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(dtype)
