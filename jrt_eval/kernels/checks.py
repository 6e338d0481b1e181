"""Argument checks of the public operators: what is wrong, with the shapes found, before any pointer is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.kernels.arguments import learns, transforming

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def fail(message: str) -> None:
    raise UserError(message)


def same_kind(operator: str, first: Tensor, *others: Tensor | None) -> None:
    """All float, of one dtype, on one device."""
    if first.dtype not in FLOATS:
        fail(f"{operator}: {first.dtype} is not supported; use float32, bfloat16 or float16")
    for x in others:
        if x is None:
            continue
        if x.dtype is not first.dtype:
            fail(f"{operator}: tensors of different dtypes, {first.dtype} and {x.dtype}; convert them to one")
        if x.device != first.device:
            fail(f"{operator}: tensors on different devices, {first.device} and {x.device}; move them to one")


def qkv(operator: str, q: Tensor, k: Tensor, v: Tensor, dims: int) -> None:
    """q and k alike, v alike but for the last dimension; `dims` is 4 with a length, 3 for one step."""
    layout = "(batch, length, heads, dim)" if dims == 4 else "(batch, heads, dim)"
    if q.dim() != dims or v.dim() != dims or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        fail(f"{operator}: expected q, k and v of shape {layout} that agree, got {_shape(q)}, {_shape(k)}, {_shape(v)}")
    if q.shape[-1] == 0 or v.shape[-1] == 0:
        fail(f"{operator}: q, k and v need at least one number per head, got {_shape(q)}, {_shape(k)}, {_shape(v)}")
    same_kind(operator, v, q, k)


def lengths(operator: str, x: Tensor, batch: int, longest: int, device: torch.device) -> None:
    """How many tokens of each row count. What they say is looked at where that stops nothing: not on a GPU, nor while tracing."""
    shaped(operator, "lengths", x, (batch,), device)
    if x.is_floating_point():
        fail(f"{operator}: lengths are {x.dtype}, expected integers")
    if batch == 0 or torch.compiler.is_compiling() or x.device.type != "cpu":
        return
    low, high = (int(each) for each in x.aminmax())
    if low < 0 or high > longest:
        fail(f"{operator}: lengths from {low} to {high}, expected 0 to {longest}, the tokens of a row")


def shaped(operator: str, name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(x.shape) != shape:
        fail(f"{operator}: {name} has shape {_shape(x)}, expected {shape}")
    if x.device != device:
        fail(f"{operator}: {name} is on {x.device}, the other tensors on {device}")


def floating(operator: str, name: str, x: Tensor | None) -> None:
    """Integers would be converted, and what a step writes to them truncated."""
    if x is not None and x.dtype not in FLOATS:
        fail(f"{operator}: {name} is {x.dtype}, expected a floating dtype")


def inference(operator: str, *tensors: Tensor | None) -> None:
    """A decode step updates its state in place and has no gradient."""
    if learns(*tensors):
        fail(f"{operator}: an input requires a gradient, and a decode step has none; call it under torch.no_grad()")
    if not torch.compiler.is_compiling() and transforming():
        fail(f"{operator}: a decode step has no forward-mode derivative and works in no transform of torch.func")


def writable(operator: str, name: str, x: Tensor) -> None:
    """Updated in place, so no two elements of it may share memory, and autograd must not need its old value."""
    if not x.is_contiguous():
        fail(f"{operator}: {name} is updated in place and must be contiguous; pass {name}.contiguous()")
    if x.requires_grad:
        fail(f"{operator}: {name} is updated in place and must not require a gradient; pass {name}.detach()")


def apart(operator: str, written: dict[str, Tensor], read: dict[str, Tensor | None]) -> None:
    """What is updated in place shares no memory with anything else of the call."""
    if torch.compiler.is_compiling():  # tensors have no addresses yet
        return
    seen = [(name, *_span(x)) for name, x in written.items()]
    for i, (name, first, last) in enumerate(seen):
        for other, start, stop in seen[i + 1 :]:
            if start < last and first < stop:
                _overlapping(operator, name, other)
    for other, y in read.items():
        if y is None:
            continue
        start, stop = _span(y)
        for name, first, last in seen:
            if start < last and first < stop:
                _overlapping(operator, name, other)


def _overlapping(operator: str, name: str, other: str) -> None:
    fail(f"{operator}: {other} overlaps {name} in memory, which is updated in place; pass {other}.clone()")


def _span(x: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last; (0, 0) where there is no memory."""
    first = x.data_ptr()  # 0 where there are no elements
    if x.is_contiguous():
        return first, first + x.nbytes
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return first, first + (reach + 1) * x.element_size()


def held_in(operator: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Updated in place, so its dtype must be what the operator adds in."""
    if x.dtype is not dtype:
        fail(f"{operator}: {name} is {x.dtype}, expected {dtype}; it is updated in place, so convert it once, before")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
