"""flash-linear-attention on a GPU, the second choice where our own kernels are not built: the functions that `registry` lists as "fla".

Its Based operators (`parallel_based`, `fused_chunk_based`) take no state and no mask, return no state and add 1e-6 to the normaliser.
Its `chunk_linear_attn` is causal linear attention over given features, with an initial and a final state: over our 153 features and
values with a column of ones for the normaliser it is this operator. Features stand in memory then, twice 306 bytes per token and head.

bfloat16 only: it multiplies float32 as TF32, and float16 would hold sums that float16 cannot. It takes at most 256 features and refuses
sequences shorter than their number of heads; these, decay and all else take the PyTorch reference. Gradients are fla's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import reference
from jrt_eval.kernels.features import feature_map, num_features
from jrt_eval.kernels.states import TaylorState

MOST_FEATURES = 256

log = logging.getLogger("jrt_eval.kernels")


def missing() -> str | None:
    """Why it cannot be used, without importing it."""
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed; pip install 'jrt-eval[gpu]'"
    return None


@cache
def _product() -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = import_module("fla.ops.linear_attn").chunk_linear_attn
    except (ImportError, AttributeError, RuntimeError) as error:  # without Triton or a driver for it
        log.warning("kernels on cuda: PyTorch, flash-linear-attention does not import: %s", error)
        return None
    return found


def _takes(v: Tensor, features: int) -> bool:
    batch, length, heads, dim = v.shape
    fits = features <= MOST_FEATURES and length >= heads and batch * heads * dim > 0
    return fits and not torch.compiler.is_compiling() and _product() is not None


def _causal(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    product = _product()
    assert product is not None
    first = None if state is None else state.to(torch.float32).contiguous()
    y, final = product(
        q.contiguous(), k.contiguous(), v.contiguous(), scale=1.0, initial_state=first, output_final_state=True,
        normalize=False,
    )  # fmt: skip
    return y, final.to(torch.float32)


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    if decay is not None or not _takes(v, num_features(q.shape[-1])):
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    fq, fk = (feature_map(x.to(torch.float32)) for x in (q, k))
    if mask is not None:
        fk = fk * mask.to(torch.float32)[..., None, None]
    values = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    sums = None if state is None else torch.cat([state.kv, state.k[..., None]], -1)
    both, final = _causal(fq.to(v.dtype), fk.to(v.dtype), values, sums)
    both = both.to(torch.float32)
    y = both[..., :-1] / (both[..., -1:] + reference.EPS)
    return y.to(v.dtype), TaylorState(final[..., :-1].contiguous(), final[..., -1].contiguous())


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if not _takes(v, q.shape[-1]):
        return reference.causal_dot_product(q, k, v, state)
    return _causal(q, k, v, state)


OPERATORS: dict[str, Callable[..., Any]] = {
    "taylor_linear_attention": taylor_linear_attention,
    "causal_dot_product": causal_dot_product,
}
