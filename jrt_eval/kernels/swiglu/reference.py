"""SwiGLU's gate in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(h: Tensor) -> Tensor:
    up, gate = h.chunk(2, -1)
    return F.silu(gate) * up
