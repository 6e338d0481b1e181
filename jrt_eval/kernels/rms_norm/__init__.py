"""Root-mean-square norms: of a residual sum, and of groups of adjacent channels."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.dispatch import inference_backend, select

__all__ = ["add_rms_norm", "grouped_rms_norm"]


def add_rms_norm(r: Tensor, y: Tensor, weight: Tensor, eps: float, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """r + y, and its root-mean-square norm weight * (r + y) / sqrt(mean((r + y)^2) + eps).

    Args:
        r, y: (..., dim), the residual and a layer's output
        weight: (dim,)

    Returns:
        The sum in PyTorch's common dtype of r and y, and its norm, computed in float32, in weight's dtype.
    """
    backend = inference_backend(backend, r, y, weight)
    if r.dtype is not torch.promote_types(r.dtype, y.dtype):
        backend = "torch"
    total, x = select("add_rms_norm", r, backend)(r, y, weight, eps)
    return total, x


def grouped_rms_norm(x: Tensor, weight: Tensor, groups: int, eps: float, *, backend: str = "auto") -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), where the mean is over a group of adjacent channels.

    Args:
        x: (..., dim)
        weight: (dim,)
        groups: how many, a divisor of dim

    Returns:
        The norm, computed in float32, in x's dtype.
    """
    backend = inference_backend(backend, x, weight)
    y: Tensor = select("grouped_rms_norm", x, backend)(x, weight, groups, eps)
    return y
