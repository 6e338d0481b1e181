"""Rotary position embedding in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    x1, x2, rest = x[..., :n].float(), x[..., n : 2 * n].float(), x[..., 2 * n :]
    turned = (x1 * cos - x2 * sin).to(x.dtype), (x1 * sin + x2 * cos).to(x.dtype)
    return torch.cat([*turned, rest], -1)
