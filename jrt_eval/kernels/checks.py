"""Argument checks of the public operators: what is wrong, with the shapes found, before any pointer is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.kernels.features import num_features

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
    same_kind(operator, v, q, k)


def shaped(operator: str, name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(x.shape) != shape:
        fail(f"{operator}: {name} has shape {_shape(x)}, expected {shape}")
    if x.device != device:
        fail(f"{operator}: {name} is on {x.device}, the other tensors on {device}")


def taylor_state(operator: str, kv: Tensor, k: Tensor, v: Tensor, feature_dim: int, in_place: bool) -> None:
    """A TaylorState for values like v (batch, ..., heads, head_dim)."""
    batch, heads, n = v.shape[0], v.shape[-2], num_features(feature_dim)
    shaped(operator, "state.kv", kv, (batch, heads, n, v.shape[-1]), v.device)
    shaped(operator, "state.k", k, (batch, heads, n), v.device)
    if in_place:
        writable(operator, "state.kv", kv)
        writable(operator, "state.k", k)


def writable(operator: str, name: str, x: Tensor) -> None:
    """Updated in place, so no two elements of it may share memory, and autograd must not need its old value."""
    if not x.is_contiguous():
        fail(f"{operator}: {name} is updated in place and must be contiguous; pass {name}.contiguous()")
    if x.requires_grad:
        fail(f"{operator}: {name} is updated in place and must not require a gradient; pass {name}.detach()")


def step_fits(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor) -> bool:
    """Whether a decode step's arguments are plainly right: one look at each, since a step takes microseconds. If not, ask why."""
    shape, dtype, device = q.shape, v.dtype, v.get_device()
    if len(shape) != 3 or k.shape != shape:
        return False
    batch, heads, dim = shape
    n, f = num_features(dim), v.shape[-1]
    return (
        v.shape == (batch, heads, f)
        and kv.shape == (batch, heads, n, f)
        and k_sum.shape == (batch, heads, n)
        and q.dtype is dtype
        and k.dtype is dtype
        and dtype in FLOATS
        and q.get_device() == device
        and k.get_device() == device
        and kv.get_device() == device
        and k_sum.get_device() == device
        and kv.is_contiguous()
        and k_sum.is_contiguous()
        and not kv.requires_grad
        and not k_sum.requires_grad
    )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
