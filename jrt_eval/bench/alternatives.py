"""Other implementations of Taylor linear attention in PyTorch, and softmax attention for scale.

All take contiguous q, k (batch, heads, length, d) and v (batch, heads, length, f), and return y (batch, heads, length, f).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels import feature_map, num_features, taylor_linear_attention

Alternative = Callable[[Tensor, Tensor, Tensor], Tensor]


def quadratic_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The released PyTorch form: all 1 + d + d^2 features, then length x length products."""
    a = full_features(q) @ full_features(k).transpose(-1, -2)
    a = a.tril_()
    return (a @ v) / (a.sum(-1, keepdim=True) + 1e-12)


def quadratic_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """1 + s + s^2/2 = ((s + 1)^2 + 1)/2 in place on the scores."""
    s = q @ k.transpose(-1, -2)
    s.mul_(q.shape[-1] ** -0.5).add_(1).square_().add_(1).mul_(0.5).tril_()
    return (s @ v) / (s.sum(-1, keepdim=True) + 1e-12)


def linear_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The fastest linear form in PyTorch that we know: a loop over chunks of 64 with symmetric features; a column of ones gives the normaliser."""
    batch, heads, length, d = q.shape
    f = v.shape[-1]
    scale = d**-0.5
    ones = torch.cat([v, v.new_ones(batch, heads, length, 1)], -1)
    state = v.new_zeros(batch, heads, num_features(d), f + 1)
    y = torch.empty_like(v)
    for start in range(0, length, 64):
        at = slice(start, start + 64)
        qc, kc, vc = q[:, :, at], k[:, :, at], ones[:, :, at]
        s = qc @ kc.transpose(-1, -2)
        s.mul_(scale).add_(1).square_().add_(1).mul_(0.5).tril_()
        sums = s @ vc
        sums += feature_map(qc) @ state
        torch.div(sums[..., :f], sums[..., f:].add_(1e-12), out=y[:, :, at])
        state += feature_map(kc).transpose(-1, -2) @ vc
    return y


def full_features(x: Tensor) -> Tensor:
    """The 1 + d + d^2 features of the released code."""
    z = x * x.shape[-1] ** -0.25
    outer = (z[..., :, None] * z[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(z[..., :1]), z, outer], -1)


def fast_transformers() -> dict[str, Alternative]:
    """fast-transformers' CPU product over 273 and 153 features; empty if it is not installed."""
    try:
        product = import_module("fast_transformers.causal_product").causal_dot_product
    except ImportError:
        return {}

    def over(features: Callable[[Tensor], Tensor]) -> Alternative:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            fq, fk = features(q), features(k)
            below = torch.einsum("bhld,bhld->bhl", fq, fk.cumsum(2)) + 1e-12
            y: Tensor = product(fq, fk, v) / below[..., None]
            return y

        return run

    return {"fast-transformers, all features": over(full_features), "fast-transformers, symmetric": over(feature_map)}


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Another operator, for scale: PyTorch's causal softmax attention, with q and k as wide as v."""
    return F.scaled_dot_product_attention(v, v, v, is_causal=True)


def table() -> dict[str, tuple[Alternative, bool]]:
    """Name -> (function, whether it needs length x length numbers per head)."""
    rows: dict[str, tuple[Alternative, bool]] = {
        "PyTorch quadratic, features": (quadratic_features, True),
        "PyTorch quadratic, scores": (quadratic_scores, True),
        "PyTorch linear, chunks of 64": (linear_loop, False),
        "PyTorch softmax attention (SDPA)": (softmax_attention, False),
    }
    return {**rows, **{name: (run, False) for name, run in fast_transformers().items()}}


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y, _ = taylor_linear_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), backend="torch")
    return y.transpose(1, 2)


def differentiable() -> dict[str, tuple[Alternative, bool]]:
    """The implementations that autograd can differentiate, as in `table`. The others overwrite what it needs."""
    return {
        "PyTorch quadratic, features": (quadratic_features, True),
        "PyTorch linear, chunks of 64": (_reference, False),
        "PyTorch softmax attention (SDPA)": (softmax_attention, False),
    }


def naive_step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor) -> Tensor:
    """The released decode step: all features, and broadcast products for update and output."""
    fq, fk = full_features(q), full_features(k)
    kv += fk[..., None] * v[..., None, :]
    k_sum += fk
    return (fq[..., None] * kv).sum(-2) / ((fq * k_sum).sum(-1, keepdim=True) + 1e-12)
