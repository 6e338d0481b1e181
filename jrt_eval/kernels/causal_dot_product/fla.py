"""The causal dot product by flash-linear-attention's `chunk_linear_attn`, bfloat16 on a GPU.

It takes at most 256 features and refuses sequences shorter than their number of heads; these use the PyTorch reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.causal_dot_product import reference

MOST_FEATURES = 256

log = logging.getLogger("jrt_eval.kernels")


@cache
def _operator() -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = import_module("fla.ops.linear_attn").chunk_linear_attn
    except (ImportError, AttributeError, RuntimeError) as error:  # without Triton or a driver for it
        log.warning("kernels on cuda: PyTorch, flash-linear-attention does not import: %s", error)
        return None
    return found


def takes(v: Tensor, features: int) -> bool:
    batch, length, heads, dim = v.shape
    fits = features <= MOST_FEATURES and length >= heads and batch * heads * dim > 0
    return fits and not torch.compiler.is_compiling() and _operator() is not None


def product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    operator = _operator()
    assert operator is not None
    first = None if state is None else state.to(torch.float32).contiguous()
    y, final = operator(
        q.contiguous(), k.contiguous(), v.contiguous(), scale=1.0, initial_state=first, output_final_state=True,
        normalize=False,
    )  # fmt: skip
    return y, final.to(torch.float32)


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if not takes(v, q.shape[-1]):
        return reference.causal_dot_product(q, k, v, state)
    return product(q, k, v, state)
