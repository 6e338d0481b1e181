"""Tensors in the form that the compiled modules read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad


def plain(x: Tensor | None) -> Tensor | None:
    """Contiguous, in its own dtype."""
    return None if x is None else x.contiguous().resolve_neg()


def single(x: Tensor | None) -> Tensor | None:
    """float32 and contiguous."""
    return None if x is None else x.to(torch.float32).contiguous().resolve_neg()


def step_on_views(step: Callable[..., Tensor], written: slice, *args: Any) -> Tensor:
    """step(*args) of a decode step that reads memory directly, with lazily negated views resolved.

    The memory of such a view has the opposite sign. args[written] are updated in place, views included.
    """
    if not any(isinstance(x, Tensor) and x.is_neg() for x in args):
        return step(*args)
    resolved = [x.resolve_neg() if isinstance(x, Tensor) else x for x in args]
    y = step(*resolved)
    for x, result in zip(args[written], resolved[written], strict=True):
        if x is not result:
            x.copy_(result)
    return y


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def transforming() -> bool:
    """Whether forward-mode differentiation or a transform of torch.func is active."""
    return forward_ad._current_level >= 0 or maybe_current_level() is not None
