"""Which implementation computes an operator: a table of operator x backend.

A backend is a name, a device type, a reason why it is not available (or None), and a function per operator it has. "torch" is
the reference, has them all and takes any device; adding a backend is one `Backend` in `BACKENDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jrt_eval.errors import UserError, nearest
from jrt_eval.kernels import compiled, fla, reference

log = logging.getLogger("jrt_eval.kernels")

OPERATORS = (
    "taylor_linear_attention",
    "encode_prefix",
    "taylor_step",
    "causal_dot_product",
    "sliding_window_attention",
    "sliding_window_step",
    "gated_short_conv",
    "gated_short_conv_step",
)
# What a backend may have on top, as one operator for several.
FUSED = ("prefix_linear_attention",)


@dataclass(frozen=True)
class Backend:
    """One set of implementations; each has the signature of its namesake in `reference`."""

    device: str | None  # the device type its tensors live on; None: any
    dtypes: tuple[torch.dtype, ...]
    operators: dict[str, Callable[..., Any]]
    missing: str | None = None  # why nothing of it can run here, and the mend
    kind: str = "the compiled ones"  # what the log calls it


_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def _cpu() -> dict[str, Callable[..., Any]]:
    if compiled.missing is not None:
        return {}
    from jrt_eval.kernels import cpu

    return {name: getattr(cpu, name) for name in OPERATORS}


def _cuda() -> dict[str, Callable[..., Any]]:
    if compiled.cuda_missing is not None:
        return {}
    from jrt_eval.kernels import cuda

    return {name: getattr(cuda, name) for name in (*OPERATORS, *FUSED)}


BACKENDS: dict[str, Backend] = {
    "cpu": Backend("cpu", _HALF_AND_SINGLE, _cpu(), compiled.missing),
    "cuda": Backend("cuda", _HALF_AND_SINGLE, _cuda(), compiled.cuda_missing),
    "fla": Backend("cuda", (torch.bfloat16,), fla.OPERATORS, fla.missing(), "flash-linear-attention's"),
    "torch": Backend(None, (*_HALF_AND_SINGLE, torch.float64), {name: getattr(reference, name) for name in OPERATORS}),
}

# `auto`: the first of these that has the operator, for the device and dtype at hand.
AUTO = tuple(name for name in BACKENDS if name != "torch")

# Backend (as asked for) -> a decode step that is tried before all checks, and gives None where they are needed. Filled when a
# step's backend is chosen for the first time: see `api.taylor_step`.
QUICK_STEPS: dict[str, Callable[..., Any]] = {}

_chosen: dict[tuple[str, torch.device, torch.dtype, str], Callable[..., Any]] = {}
_said: set[tuple[str, str]] = set()


def select(operator: str, like: Tensor, backend: str) -> Callable[..., Any]:
    """The function that computes `operator` for tensors like `like`.

    Raises UserError for a backend that is unknown, unavailable here, or does not take this device or dtype.
    """
    chosen = _chosen.get((operator, like.device, like.dtype, backend))
    if chosen is None:
        chosen = _choose(operator, like, backend)
        if not torch.compiler.is_compiling():
            _chosen[operator, like.device, like.dtype, backend] = chosen
            if operator == "taylor_step" and chosen is BACKENDS["cpu"].operators.get(operator):
                from jrt_eval.kernels.cpu import quick_step

                QUICK_STEPS[backend] = quick_step
    return chosen


def fused(operator: str, like: Tensor, backend: str) -> Callable[..., Any] | None:
    """An operator of `FUSED`, if the backend that computes its parts has it."""
    for name in AUTO if backend == "auto" else (backend,):
        entry = BACKENDS.get(name)
        if entry and not entry.missing and entry.device == like.device.type and like.dtype in entry.dtypes:
            return entry.operators.get(operator)
    return None


def _choose(operator: str, like: Tensor, backend: str) -> Callable[..., Any]:
    if backend == "auto":
        device = like.device.type
        instead = ""  # what would be faster and is not there
        for name in AUTO:
            entry = BACKENDS[name]
            if entry.device != device or like.dtype not in entry.dtypes:
                continue
            if entry.missing is not None:
                instead = instead or f", not {name!r}: {entry.missing}"
            elif operator in entry.operators:
                _say(device, f"kernels on {device}: {entry.kind} ({name!r}){instead}")
                return entry.operators[operator]
        if instead:
            _say(device, f"kernels on {device}: PyTorch{instead}")
        return BACKENDS["torch"].operators[operator]
    entry_ = BACKENDS.get(backend)
    if entry_ is None:
        raise UserError(
            f"unknown backend {backend!r}{nearest(backend, [*BACKENDS, 'auto'])}: one of auto, {', '.join(BACKENDS)}"
        )
    if entry_.missing is not None:
        raise UserError(f"backend {backend!r} cannot run here: {entry_.missing}")
    if entry_.device is not None and like.device.type != entry_.device:
        raise UserError(
            f"backend {backend!r} takes tensors on {entry_.device}, these are on {like.device}; use backend='auto'"
        )
    if like.dtype not in entry_.dtypes:
        raise UserError(f"backend {backend!r} does not take {like.dtype}; convert to float32, or use backend='torch'")
    if operator not in entry_.operators:
        raise UserError(f"backend {backend!r} has no {operator}; use backend='auto' or 'torch'")
    return entry_.operators[operator]


def _say(device: str, line: str) -> None:
    """Log a choice once."""
    if torch.compiler.is_compiling() or (device, line) in _said:
        return
    _said.add((device, line))
    log.info(line)
