"""Taylor linear attention in PyTorch with all chunks computed at once, for training on a GPU.

The reference walks over chunks of 64 tokens one after the other and needs little memory; a GPU then waits for launches.
Here a chunk is one more dimension of the tensors, and the sum over earlier chunks is a cumulative sum. Inputs, outputs and
states are the reference's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.layout import chunks, joined, unmasked, weighted_sum, wide
from jrt_eval.kernels.taylor_linear_attention import reference
from jrt_eval.kernels.taylor_linear_attention.features import feature_map
from jrt_eval.kernels.taylor_linear_attention.reference import CHUNK, EPS
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    """Prefix or causal Taylor linear attention; with decay the reference computes."""
    if decay is not None or not v.shape[1]:
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    dtype = wide(v.dtype)
    length = v.shape[1]
    real = torch.ones(v.shape[:2], dtype=dtype, device=v.device) if mask is None else mask.to(dtype)
    # A column of ones makes the denominator one more value; a masked position's values are zeros.
    k, v = unmasked(k, mask), unmasked(v, mask)
    values = torch.cat([v.to(dtype), v.new_ones((*v.shape[:3], 1), dtype=dtype)], -1) * real[..., None, None]
    qc, kc, vc = chunks(q, CHUNK, dtype), chunks(k, CHUNK, dtype), chunks(values, CHUNK, dtype)
    fq, fk = feature_map(qc), feature_map(kc)
    sums = fk.transpose(-1, -2) @ vc  # (batch, heads, chunks, features, head_dim + 1)
    total = sums.cumsum(2)
    before = F.pad(total[:, :, :-1], (0, 0, 0, 0, 1, 0))  # total - sums would be NaN where sums is
    final = total[:, :, -1]
    if state is not None:
        first = torch.cat([state.kv.to(dtype), state.k.to(dtype)[..., None]], -1)
        before, final = before + first[:, :, None], final + first
    s = qc @ kc.transpose(-1, -2) * q.shape[-1] ** -0.5
    sees = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril()
    both = weighted_sum((1 + s + 0.5 * s * s).tril(), vc, sees) + fq @ before
    y = both[..., :-1] / (both[..., -1:] + EPS)
    return joined(y, length, v.dtype), TaylorState(final[..., :-1].contiguous(), final[..., -1].contiguous())


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    """Both sums over the prefix, as two products."""
    dtype = wide(v.dtype)
    k, v = unmasked(k, mask), unmasked(v, mask)
    features = feature_map(k.to(dtype))
    if mask is not None:
        features = features * mask.to(dtype)[..., None, None]
    return TaylorState(torch.einsum("blhf,blhd->bhfd", features, v.to(dtype)), features.sum(1))
