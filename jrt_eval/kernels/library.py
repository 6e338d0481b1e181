"""Operators of the compiled backends in PyTorch's operator library, `torch.ops.jrt_eval`.

An operator's schema, shapes and gradient are the same for all devices; each device adds its implementation. The low-level
registration (`Library.define` and `impl`) costs 3.5 microseconds per call, the decorator `torch.library.custom_op` 26.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("jrt_eval", "DEF")


class Operator:
    """One operator of `torch.ops.jrt_eval`.

    Args:
        schema: "name(Tensor x, ...) -> Tensor", in PyTorch's schema language
        shapes: the operator on tensors without data ("fake" tensors): returns empty outputs of the right shapes and dtypes
        backward: the gradient, (ctx, *output gradients) -> input gradients, as torch.library.register_autograd takes it
        save: (ctx, inputs, output) -> None, saves what `backward` needs
    """

    def __init__(
        self,
        schema: str,
        shapes: Callable[..., Any],
        *,
        backward: Callable[..., Any] | None = None,
        save: Callable[..., None] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
        full = f"jrt_eval::{self.name}"
        torch.library.register_fake(full, shapes, lib=_library)
        if backward is not None:
            torch.library.register_autograd(full, backward, setup_context=save, lib=_library)
        self.call: Callable[..., Any] = getattr(torch.ops.jrt_eval, self.name)

    def implement(self, device: str, function: Callable[..., Any]) -> None:
        """Add the implementation for a device, "CPU" or "CUDA"."""
        _library.impl(self.name, function, device)
