"""The compiled module: whether it is there, fits this Python code, and which instruction set it uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch

from jrt_eval.errors import UserError

# What csrc/bindings.cpp and csrc/cuda/bindings.cpp must say they are; each goes up whenever a signature of its module changes.
CUDA_ABI = 5
ABI = 7

# How the modules read tensors without asking Python for each attribute; PyTorch has it from 2.10 on.
EXCHANGE_TABLE: object = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

INSTALL = "reinstall jrt-eval where a C++17 compiler is (pip install --force-reinstall --no-deps jrt-eval), or use backend='torch'"


@dataclass(frozen=True)
class Status:
    """What `jrt-eval doctor` shows."""

    compiled: bool
    isa: str | None  # avx512, avx2 or portable
    openmp: bool
    threads: int
    text: str
    mend: str


def _load() -> tuple[ModuleType | None, str, str | None]:
    """The module, its instruction set, and why it cannot be used."""
    try:
        module = import_module("jrt_eval._kernels")
    except ImportError as error:
        return None, "", f"the compiled module jrt_eval._kernels does not import ({error}); {INSTALL}"
    found = getattr(module, "ABI", None)
    if found != ABI:
        return None, "", f"the compiled module is of another version (interface {found}, expected {ABI}); {INSTALL}"
    module.use_exchange_table(EXCHANGE_TABLE)
    wanted = os.environ.get("JRT_EVAL_ISA", "")
    isa = module.select_isa(wanted)
    if not isa:
        return (
            None,
            "",
            f"JRT_EVAL_ISA={wanted} is not available on this machine; unset it, or use avx512, avx2 or portable",
        )
    return module, isa, None


def _load_cuda() -> tuple[ModuleType | None, str | None]:
    """The module with the CUDA kernels, and why it cannot be used."""
    again = "reinstall jrt-eval where nvcc is (JRT_EVAL_CUDA=1 pip install --force-reinstall --no-deps jrt-eval)"
    try:
        module = import_module("jrt_eval._cuda")
    except ModuleNotFoundError:
        return None, f"this installation was built without CUDA kernels; {again}"
    except ImportError as error:
        return None, f"the compiled module jrt_eval._cuda does not import ({error}); {again}"
    found = getattr(module, "ABI", None)
    if found != CUDA_ABI:
        return None, f"the CUDA kernels are of another version (interface {found}, expected {CUDA_ABI}); {again}"
    module.use_exchange_table(EXCHANGE_TABLE)
    return module, None


_module, _isa, missing = _load()
_cuda, cuda_missing = _load_cuda()


def module() -> ModuleType:
    """The compiled module; UserError where it is missing."""
    if _module is None:
        raise UserError(f"the compiled kernels cannot run here: {missing}")
    return _module


def cuda_module() -> ModuleType:
    """The module with the CUDA kernels; UserError where it is missing."""
    if _cuda is None:
        raise UserError(f"the CUDA kernels cannot run here: {cuda_missing}")
    return _cuda


def status() -> Status:
    """Which kernels are live here, and why not."""
    threads = torch.get_num_threads()
    if _module is None:
        text, _, mend = (missing or "").partition("; ")
        return Status(False, None, False, 1, f"PyTorch only: {text}", mend)
    openmp = bool(_module.OPENMP)
    runs = f"{threads} OpenMP thread{'s' if threads > 1 else ''}" if openmp else "one thread (built without OpenMP)"
    return Status(True, _isa, openmp, threads if openmp else 1, f"compiled, {_isa}, {runs}", "")
