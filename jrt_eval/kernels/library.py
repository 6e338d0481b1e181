"""Operators of the compiled backends in PyTorch's operator library, `torch.ops.jrt_eval`.

An operator's schema, shapes and gradient are the same for all devices; each device adds its implementation. The low-level
registration (`Library.define` and `impl`) costs 3.5 microseconds per call, the decorator `torch.library.custom_op` 26.

A derivative that an operator does not have raises UserError instead of being zero: gradients of operators without `backward`,
second derivatives of operators without `reference`, and forward-mode derivatives of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jrt_eval.errors import UserError
from jrt_eval.kernels.arguments import learns, step_on_views

_library = torch.library.Library("jrt_eval", "DEF")


class Operator:
    """One operator of `torch.ops.jrt_eval`.

    Args:
        schema: "name(Tensor x, ...) -> Tensor", in PyTorch's schema language
        shapes: the operator on tensors without data ("fake" tensors): returns empty outputs of the right shapes and dtypes
        backward: the gradient, (ctx, *output gradients) -> input gradients, as torch.library.register_autograd takes it
        save: (ctx, inputs, output) -> None, saves what `backward` needs, the inputs first; by default only the inputs
        reference: the operator's arguments -> its outputs (None for one without gradient) in differentiable PyTorch, for
            second derivatives; all arguments must then be tensors or None
    """

    def __init__(
        self,
        schema: str,
        shapes: Callable[..., Any],
        *,
        backward: Callable[..., Any] | None = None,
        save: Callable[..., None] | None = None,
        reference: Callable[..., tuple[Tensor | None, ...]] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        self._backward, self._reference = backward, reference
        _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
        full = f"jrt_eval::{self.name}"
        torch.library.register_fake(full, shapes, lib=_library)
        self.call: Callable[..., Any] = getattr(torch.ops.jrt_eval, self.name)
        if "!" in schema:  # updates its arguments: PyTorch accepts no gradient for it
            _library.impl(self.name, self._without_gradient, "Autograd")
        else:
            torch.library.register_autograd(full, self._differentiate, setup_context=save or _save, lib=_library)

    def implement(self, device: str, function: Callable[..., Any]) -> None:
        """Add the implementation for a device, "CPU" or "CUDA"."""

        def checked(*args: Any) -> Any:
            if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
                raise UserError(
                    f"torch.ops.jrt_eval.{self.name} has no forward-mode derivative; call the function of jrt_eval.kernels"
                )
            return function(*args)

        _library.impl(self.name, checked, device)

    def _without_gradient(self, *args: Any) -> Any:
        if learns(*(x for x in args if isinstance(x, Tensor))):
            raise UserError(f"{self.name} has no gradient; call it under torch.no_grad(), or call the prefill instead")
        with torch._C._AutoDispatchBelowAutograd():
            return self.call(*args)

    def _differentiate(self, ctx: Any, *grads: Tensor) -> Any:
        if self._backward is None:
            raise UserError(f"torch.ops.jrt_eval.{self.name} has no gradient of its own; use backend='torch'")
        if not torch.is_grad_enabled() or self._reference is None:
            return self._backward(ctx, *grads)
        return reference_gradient(self._reference, ctx.saved_tensors[: len(ctx.needs_input_grad)], grads)


def kernel_or_reference(operator: Operator, reference: Callable[..., Any]) -> Callable[..., Any]:
    """A backend's prefill: `operator`, or `reference`, which takes the same arguments, if a gradient is needed."""

    def prefill(*arguments: Any) -> Any:
        needed = learns(*(x for x in arguments if isinstance(x, Tensor)))
        return (reference if needed else operator.call)(*arguments)

    return prefill


def decode_step(operator: Operator, step: Callable[..., Tensor], written: slice) -> Callable[..., Tensor]:
    """A backend's decode step: `operator` while tracing, else `step`, without the cost of PyTorch's dispatcher.

    Args:
        written: the arguments that are updated in place
    """

    def run(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            y: Tensor = operator.call(*arguments)
            return y
        return step_on_views(step, written, *arguments)

    return run


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if x is None or isinstance(x, Tensor)))


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def reference_gradient(
    reference: Callable[..., tuple[Tensor | None, ...]],
    inputs: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` by autograd through `reference`, differentiable again where autograd records them."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that the gradient of one input does not run on through another that was computed from it.
        fresh = [x.view_as(x) if x is not None and x.requires_grad else x for x in inputs]
        wanted = [x for x in fresh if x is not None and x.requires_grad]
        outputs = reference(*fresh)
        pairs = [
            (y, g) for y, g in zip(outputs, grads, strict=True) if y is not None and y.requires_grad and g is not None
        ]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wanted, [g.to(y.dtype) for y, g in pairs], create_graph=again, allow_unused=True
            )
        )
    return tuple(next(found) if x is not None and x.requires_grad else None for x in fresh)
