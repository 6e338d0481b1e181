"""The residual sum and its root-mean-square norm in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_rms_norm(r: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = r + y
    with torch.autocast(total.device.type, enabled=False):
        x = F.rms_norm(total.float(), weight.shape, weight.float(), eps)
    return total, x.to(weight.dtype)
