"""What the operators should compute, straight from the formulas: quadratic, float64, loops where that is plainer.

Nothing here uses jrt_eval: scores come from 1 + s + s^2/2 (no feature map), windows from a boolean band.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How far an operator may be from these formulas, as a relative error in norm.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def state_tolerance(backend: str, dtype: torch.dtype, d: int, f: int) -> float:
    """How far final states may be: the sums are float32 everywhere, but the tensor cores take features rounded to bfloat16."""
    rounded = backend == "cuda" and dtype in (torch.bfloat16, torch.float16) and d <= 16 and f <= 128
    return 4e-3 if rounded else 1e-5


def taylor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    prefix_mask: Tensor | None = None,
    decay: Tensor | None = None,
) -> Tensor:
    """Causal attention with weights 1 + s + s^2/2, s = q.k/sqrt(d), over an always visible prefix (k, v) and the past."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    length = q.shape[2]
    i = torch.arange(length, device=q.device)

    def weights(keys: Tensor, m: Tensor | None) -> Tensor:
        s = torch.einsum("bhid,bhjd->bhij", q, keys) / q.shape[-1] ** 0.5
        p = 1 + s + s**2 / 2
        return p if m is None else p * m.double()[:, None, None, :]

    p = weights(k, mask) * (i[:, None] >= i[None, :])
    below = p.sum(-1)
    above = p
    if decay is not None:
        at = i.expand(q.shape[0], -1) if mask is None else (mask != 0).long().cumsum(-1)
        gap = (at[:, :, None] - at[:, None, :]).clamp(min=0)[:, None]
        above = p * decay.double()[:, None, None] ** gap
    y = above @ v
    if prefix is not None:
        ke, ve = (x.double().transpose(1, 2) for x in prefix)
        pe = weights(ke, prefix_mask)
        below = below + pe.sum(-1)
        y = y + pe @ ve
    return (y / (below[..., None] + 1e-12)).transpose(1, 2)


def causal_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()).tril()
    return torch.einsum("bhij,bjhd->bihd", p, v.double())


def window(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    length = q.shape[1]
    i = torch.arange(length, device=q.device)
    sees = (i[None, :] <= i[:, None]) & (i[None, :] > i[:, None] - size)
    s = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) / q.shape[-1] ** 0.5
    p = s.masked_fill(~sees, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", p, v.double())


def conv(a: Tensor, b: Tensor | None, weight: Tensor, bias: Tensor | None, silu: bool = True) -> Tensor:
    a, w = a.double(), weight.double().reshape(weight.shape[0], -1)
    z = torch.zeros_like(a)
    for t in range(a.shape[1]):
        for tap in range(w.shape[1]):
            source = t - (w.shape[1] - 1 - tap)
            if source >= 0:
                z[:, t] += w[:, tap] * a[:, source]
    if bias is not None:
        z = z + bias.double()
    z = z / (1 + torch.exp(-z)) if silu else z
    return z if b is None else z * b.double()


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in norm; 0 for nothing against nothing."""
    norm = want.double().norm()
    gap = (got.double() - want.double()).norm()
    return float(gap / norm) if norm > 0 else float(gap)
