"""The Taylor feature map, without what symmetry makes redundant.

phi(x) = [1, z, (z outer z)/sqrt(2)] with z = x / d^(1/4), so phi(q).phi(k) = 1 + s + s^2/2 with s = q.k/sqrt(d)
(Based, arXiv 2402.18668, section 4.1). Since z_i z_j = z_j z_i, each pair is kept once, with weight 1 off the diagonal and
1/sqrt(2) on it: (d+1)(d+2)/2 features instead of 1 + d + d^2, 153 instead of 273 for d = 16.

Order: the constant; z_0 ... z_{d-1}; then for each shift s = 0 ... d//2 the products z_i z_{(i+s) mod d}, i from 0 (for even d the
last shift meets each pair twice, and only its first d/2 products are kept). So second-order features come in rows of d that
are a vector times a rotation of itself: no gathers in any backend.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def num_features(feature_dim: int) -> int:
    """Features of the symmetric second-order map: 1 + d + d(d+1)/2."""
    return (feature_dim + 1) * (feature_dim + 2) // 2


@cache
def pairs(feature_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two factors' indices of each second-order feature, in order; the first `feature_dim` are the squares."""
    d = feature_dim
    both = [(i, (i + s) % d) for s in range(d // 2 + 1) for i in range(d // 2 if 2 * s == d and d > 1 else d)]
    return tuple(i for i, _ in both), tuple(j for _, j in both)


def feature_map(x: Tensor) -> Tensor:
    """phi(x): (..., d) -> (..., num_features(d)), in x's dtype."""
    d = x.shape[-1]
    z = x * d**-0.25
    rows = [torch.ones_like(z[..., :1]), z, z * z * 0.5**0.5]
    for s in range(1, d // 2 + 1):
        keep = d // 2 if 2 * s == d else d
        rows.append(z[..., :keep] * z.roll(-s, -1)[..., :keep])
    return torch.cat(rows, -1)


def feature_map_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x from that of feature_map(x); written out, since inside an operator autograd records nothing."""
    d = x.shape[-1]
    z = x * d**-0.25
    g = grad[..., 1 : 1 + d] + grad[..., 1 + d : 1 + 2 * d] * z * 2**0.5
    at = 1 + 2 * d
    for s in range(1, d // 2 + 1):
        keep = d // 2 if 2 * s == d else d
        pair = torch.nn.functional.pad(grad[..., at : at + keep], (0, d - keep))
        g = g + pair * z.roll(-s, -1) + (pair * z).roll(s, -1)
        at += keep
    return g * d**-0.25
