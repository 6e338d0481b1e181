"""Rotary position embedding in GPT-NeoX style."""

from __future__ import annotations

from torch import Tensor

from jrt_eval.kernels.dispatch import inference_backend, select

__all__ = ["rotary"]


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> Tensor:
    """Rotate the first 2 * frequencies dims of each head; dim i pairs with dim i + frequencies.

    Args:
        x: (..., heads, dim)
        cos, sin: (..., frequencies) float32, broadcast over heads

    Returns:
        Like x; the arithmetic is float32.
    """
    y: Tensor = select("rotary", x, inference_backend(backend, x, cos))(x, cos, sin)
    return y
