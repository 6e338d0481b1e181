"""Root-mean-square norms in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_rms_norm(r: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = r + y
    with torch.autocast(total.device.type, enabled=False):
        x = F.rms_norm(total.float(), weight.shape, weight.float(), eps)
    return total, x.to(weight.dtype)


def grouped_rms_norm(x: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        parts = x.float().unflatten(-1, (groups, -1))
        y = F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight.float()
    return y.to(x.dtype)
