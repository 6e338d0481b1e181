"""Gradients of the operators in `ops`."""

from __future__ import annotations

import torch


def register(library: torch.library.Library) -> None:
    """Register them."""
