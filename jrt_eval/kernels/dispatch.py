"""Which implementation computes a call: the table of backends and the table of operators.

An operator's folder has one module per backend, and each module has functions of the same names and signatures as
`reference`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from jrt_eval.errors import UserError, nearest
from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, transforming

log = logging.getLogger("jrt_eval.kernels")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """A set of implementations, one module in each operator's folder."""

    module: str  # the module's name in an operator's folder
    device: str | None  # the device type that its tensors are on; None: any
    dtypes: tuple[torch.dtype, ...]
    missing: str | None = None  # why it cannot run here, and how to fix that
    kind: str = "compiled"  # how the log describes it
    otherwise: str | None = None  # the backend that computes the operators it lacks


def _missing(package: str, name: str) -> str | None:
    return None if find_spec(package) else f"{name} is not installed; pip install 'jrt-eval[gpu]'"


_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_ANY = (*_HALF_AND_SINGLE, torch.float64)

BACKENDS: dict[str, Backend] = {
    "cpu": Backend("cpu", "cpu", _HALF_AND_SINGLE, compiled.missing),
    "cuda": Backend("cuda", "cuda", _HALF_AND_SINGLE, compiled.cuda_missing),
    "triton": Backend("triton", "cuda", _HALF_AND_SINGLE, _missing("triton", "Triton"), "Triton"),
    "fla": Backend(
        "fla", "cuda", (torch.bfloat16,), _missing("fla", "flash-linear-attention"), "flash-linear-attention"
    ),
    # The reference's arithmetic over all chunks at once: more memory and fewer launches, for training on a GPU.
    "parallel": Backend("parallel", None, _ANY, otherwise="torch"),
    "torch": Backend("reference", None, _ANY),
}

# `auto` takes the first of these that has the operator, for the device and dtype of the call.
AUTO = ("cpu", "cuda", "triton", "fla")

# Folder of an operator -> its functions -> the backends that have them. "torch", the reference, has all.
OPERATORS: dict[str, dict[str, tuple[str, ...]]] = {
    "taylor_linear_attention": {
        "taylor_linear_attention": ("cpu", "cuda", "fla", "parallel"),
        "taylor_linear_attention_step": ("cpu", "cuda"),
        "encode_prefix": ("cpu", "cuda", "parallel"),
        "prefix_linear_attention": ("cuda",),
    },
    "causal_dot_product": {"causal_dot_product": ("cpu", "cuda", "fla")},
    "sliding_window_attention": {
        "sliding_window_attention": ("cpu", "cuda", "parallel"),
        "sliding_window_attention_step": ("cpu", "cuda"),
    },
    "gated_linear_attention": {
        "gated_linear_attention": ("cpu", "triton", "parallel"),
        "gated_linear_attention_step": ("cpu", "triton"),
    },
    "gated_delta_rule": {
        "gated_delta_rule": ("cpu", "triton", "parallel"),
        "gated_delta_rule_step": ("cpu", "triton"),
    },
    "rms_norm": {"add_rms_norm": ("triton",), "grouped_rms_norm": ("triton",)},
    "swiglu": {"swiglu": ("triton",)},
    "rotary": {"rotary": ("triton",)},
    "selective_scan": {"selective_scan": ("cpu", "cuda", "triton"), "selective_scan_step": ("cpu", "triton")},
    "short_conv": {"short_conv": ("cpu", "cuda", "triton"), "short_conv_step": ("cpu", "cuda", "triton")},
    "ssd": {"ssd": ("cpu", "triton"), "ssd_step": ("cpu", "triton")},
}

# The references of these take one token after the other: `auto` prefers chunks where no compiled kernel is.
SEQUENTIAL = ("gated_linear_attention", "gated_delta_rule")

_FOLDERS = {name: folder for folder, functions in OPERATORS.items() for name in functions}

_functions: dict[tuple[str, str], Function] = {}
_chosen: dict[tuple[str, torch.device, torch.dtype, str], Function] = {}
_logged: set[tuple[str, str]] = set()


def select(operator: str, like: Tensor, backend: str) -> Function:
    """The function that computes `operator` for tensors like `like`.

    Under forward-mode differentiation and the transforms of torch.func this is the reference, which supports them.
    Raises UserError for a backend that is unknown, unavailable here, or does not take this device or dtype.
    """
    if not torch.compiler.is_compiling() and transforming():
        _choose(operator, like, backend)
        return implementation(operator, "torch")
    function = _chosen.get((operator, like.device, like.dtype, backend))
    if function is None:
        function = implementation(operator, _choose(operator, like, backend))
        if not torch.compiler.is_compiling():
            _chosen[operator, like.device, like.dtype, backend] = function
    return function


def chosen(operator: str, like: Tensor, backend: str) -> str:
    """The name of the backend that computes `operator` for tensors like `like`; raises UserError as `select` does."""
    return _choose(operator, like, backend)


def select_fused(operator: str, part: str, like: Tensor, backend: str) -> Function | None:
    """`operator` of the backend that computes `part` of it, or None if that backend has no such function."""
    if not torch.compiler.is_compiling() and transforming():
        return implementation(operator, "torch")
    name = _choose(part, like, backend)
    return implementation(operator, name) if _has(name, operator) else None


def inference_backend(backend: str, *tensors: Tensor) -> str:
    """`backend` for operators whose kernels have no gradient: the reference where one is needed, or while tracing."""
    return "torch" if torch.compiler.is_compiling() or learns(*tensors) else backend


def implementation(operator: str, backend: str) -> Function:
    """The function of one backend."""
    found = _functions.get((operator, backend))
    if found is None:
        module = f"jrt_eval.kernels.{_FOLDERS[operator]}.{BACKENDS[backend].module}"
        found = _functions[operator, backend] = getattr(import_module(module), operator)
    return found


def load() -> None:
    """Import the implementations of the backends that work here, since torch.compile cannot trace an import.

    Triton takes a second to import and is left until a call needs it.
    """
    for operator in _FOLDERS:
        for name, entry in BACKENDS.items():
            if entry.missing is None and name != "triton" and _has(name, operator):
                implementation(operator, name)


def _has(backend: str, operator: str) -> bool:
    return backend == "torch" or backend in OPERATORS[_FOLDERS[operator]][operator]


def _choose(operator: str, like: Tensor, backend: str) -> str:
    """The backend that computes the call."""
    if backend == "auto":
        return _automatic(operator, like)
    found = BACKENDS.get(backend)
    if found is None:
        raise UserError(
            f"unknown backend {backend!r}{nearest(backend, [*BACKENDS, 'auto'])}: one of auto, {', '.join(BACKENDS)}"
        )
    if found.missing is not None:
        raise UserError(f"backend {backend!r} cannot run here: {found.missing}")
    if found.device is not None and like.device.type != found.device:
        raise UserError(
            f"backend {backend!r} takes tensors on {found.device}, these are on {like.device}; use backend='auto'"
        )
    if like.dtype not in found.dtypes:
        raise UserError(f"backend {backend!r} does not take {like.dtype}; convert to float32, or use backend='torch'")
    if _has(backend, operator):
        return backend
    if found.otherwise is None:
        raise UserError(f"backend {backend!r} has no {operator}; use backend='auto' or 'torch'")
    return found.otherwise


def _automatic(operator: str, like: Tensor) -> str:
    device = like.device.type
    instead = ""  # the faster backend that is missing
    for name in AUTO:
        entry = BACKENDS[name]
        if entry.device != device or like.dtype not in entry.dtypes or not _has(name, operator):
            continue
        if entry.missing is None:
            _say(device, f"kernels on {device}: {entry.kind} ({name!r}){instead}")
            return name
        instead = instead or f", not {name!r}: {entry.missing}"
    if instead:
        _say(device, f"kernels on {device}: PyTorch{instead}")
    return "parallel" if operator in SEQUENTIAL else "torch"


def _say(device: str, line: str) -> None:
    """Log a choice once."""
    if torch.compiler.is_compiling() or (device, line) in _logged:
        return
    _logged.add((device, line))
    log.info(line)
