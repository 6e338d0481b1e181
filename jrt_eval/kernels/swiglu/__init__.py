"""SwiGLU's gate."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels.dispatch import inference_backend, select

__all__ = ["swiglu"]


def swiglu(h: Tensor, *, backend: str = "auto") -> Tensor:
    """silu(gate) * up.

    Args:
        h: (..., 2 * dim), up in its first half and the gate in its second

    Returns:
        (..., dim) in h's dtype
    """
    y: Tensor = select("swiglu", h, inference_backend(backend, h))(h)
    return y
