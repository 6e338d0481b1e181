"""Our kernels in transformers' recurrent classes.

A module of transformers finds its recurrent functions (`causal_conv1d_fn`, `mamba2_chunk_scan`, ...) among its globals.
When it is imported, transformers puts there a function of causal_conv1d, mamba_ssm or fla, or PyTorch code where the
package is missing, as on every CPU. `provide` replaces the PyTorch code by a function that calls it, except inside
`serving(backend)`, where it calls our operator. Other models of the same classes therefore compute what they computed
before. Calls that need a gradient, packed sequences and torch.compile also keep transformers' code.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.kernels import dispatch
from jrt_eval.kernels.arguments import learns, transforming
from jrt_eval.models.kernel_functions import FUNCTIONS, Function, Ours

_backend: ContextVar[str | None] = ContextVar("jrt_eval_backend", default=None)
_NO_EFFECT = ("use_mambapy", "use_associative_scan")  # which of transformers' forms of a function runs
_PACKED = ("cu_seqlens", "cu_seq_lens_q", "seq_idx")


@contextmanager
def serving(backend: str) -> Iterator[None]:
    """Inside, transformers' classes that `provide` has seen run on our operators; with backend="torch" on PyTorch code."""
    token = _backend.set(None if backend == "torch" else backend)
    try:
        yield
    finally:
        _backend.reset(token)


def provide(model: nn.Module) -> None:
    """Let the classes of `model`'s modules call our operators inside `serving`."""
    for module in _modules(model):
        for name, ours in FUNCTIONS.items():
            theirs = getattr(module, name, None)
            if theirs is not None and not _is_ours(theirs) and _is_fallback(theirs) and _fits(theirs, ours):
                setattr(module, name, _switch(theirs, ours))


def report(model: nn.Module, backend: str) -> dict[str, str]:
    """Who computes each function that the classes of `model`'s modules look up: "short_conv (cpu)", "PyTorch", "fla"."""
    like = next(model.parameters())
    found: dict[str, str] = {}
    for module in _modules(model):
        for name, ours in FUNCTIONS.items():
            function = getattr(module, name, None)
            if function is not None:
                found[name] = _computes(function, ours, like, backend)
    return dict(sorted(found.items()))


def _computes(function: Function, ours: Ours, like: Tensor, backend: str) -> str:
    if not _is_ours(function):
        package = getattr(_implementation(function), "__module__", "").partition(".")[0]
        return "PyTorch" if package in ("", "transformers") else package
    if backend == "torch" or ours.operator is None:
        return "PyTorch"
    chosen = dispatch.chosen(ours.operator, like, backend)
    return f"{ours.operator} ({chosen})"


def _modules(model: nn.Module) -> list[Any]:
    """The Python modules that define the classes of `model`'s modules."""
    names = sorted({type(part).__module__ for part in model.modules()})
    return [sys.modules[name] for name in names if name in sys.modules]


def _switch(theirs: Function, ours: Ours) -> Function:
    @functools.wraps(theirs)
    def function(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return theirs(*args, **kwargs)
        backend = _backend.get()
        if backend is None or not _plain(args, kwargs):
            return theirs(*args, **kwargs)
        device = _device(args, kwargs)
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            result = ours.function(*args, backend=backend, **kwargs)
        return theirs(*args, **kwargs) if result is NotImplemented else result

    function.replaces = theirs  # type: ignore[attr-defined]
    return function


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is inference, on sequences that are not packed."""
    if any(kwargs.get(name) is not None for name in _PACKED) or transforming():
        return False
    return not learns(*(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))


def _is_ours(function: Any) -> bool:
    return hasattr(function, "replaces")


def _implementation(function: Any) -> Any:
    """What transformers' wrapper calls: a package's function or the PyTorch code; None if that cannot be told."""
    if not inspect.isfunction(function):
        return None
    return inspect.getclosurevars(function).nonlocals.get("implementation")


def _is_fallback(function: Any) -> bool:
    """Whether transformers found no package for this function."""
    plain = getattr(function, "__wrapped__", None)
    return plain is not None and _implementation(function) is plain


def _fits(theirs: Function, ours: Ours) -> bool:
    """Whether ours has every parameter of theirs, by the same name at the same place."""
    named = []
    for function in (theirs, ours.function):
        parameters = inspect.signature(function).parameters.values()
        named.append([p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in _NO_EFFECT])
    return named[1][: len(named[0])] == named[0]
