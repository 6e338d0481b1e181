"""From tensors to what the compiled modules take: numbers for dtypes, addresses, and states in the form that the kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def single(x: Tensor | None) -> Tensor | None:
    """float32 and contiguous."""
    return None if x is None else x.to(torch.float32).contiguous()


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
