"""Kernels in the form that training wants: the reference's arithmetic with all chunks computed at once.

The reference walks over chunks of 64 tokens, one after the other, and holds little memory; a GPU waits for its launches
then. Here a chunk is one more dimension of the tensors, and what earlier chunks leave is a cumulative sum. It registers
itself as the kernel backend `parallel`; inputs, outputs and states are the reference's, and tests compare values and
gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels import reference
from jrt_eval.kernels.features import feature_map
from jrt_eval.kernels.registry import BACKENDS, Backend
from jrt_eval.kernels.states import TaylorState, WindowState

CHUNK = 64
EPS = 1e-12
NAME = "parallel"


def _chunks(x: Tensor, size: int, wide: torch.dtype) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, chunks, size, dim), zeros behind the end."""
    batch, length, heads, dim = x.shape
    count = -(-length // size)
    x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.to(wide).view(batch, count, size, heads, dim).permute(0, 3, 1, 2, 4)


def _joined(y: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(batch, heads, chunks, size, dim) -> (batch, length, heads, dim)."""
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    """Prefix or causal Taylor linear attention; with decay the reference computes."""
    if decay is not None or not v.shape[1]:
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    wide = _wide(v)
    length = v.shape[1]
    real = torch.ones(v.shape[:2], dtype=wide, device=v.device) if mask is None else mask.to(wide)
    # A column of ones makes the denominator one more value; a masked position's values are zeros.
    values = torch.cat([v.to(wide), v.new_ones((*v.shape[:3], 1), dtype=wide)], -1) * real[..., None, None]
    qc, kc, vc = _chunks(q, CHUNK, wide), _chunks(k, CHUNK, wide), _chunks(values, CHUNK, wide)
    fq, fk = feature_map(qc), feature_map(kc)
    sums = fk.transpose(-1, -2) @ vc  # (batch, heads, chunks, features, head_dim + 1)
    total = sums.cumsum(2)
    before = total - sums
    final = total[:, :, -1]
    if state is not None:
        first = torch.cat([state.kv.to(wide), state.k.to(wide)[..., None]], -1)
        before, final = before + first[:, :, None], final + first
    s = qc @ kc.transpose(-1, -2) * q.shape[-1] ** -0.5
    both = (1 + s + 0.5 * s * s).tril() @ vc + fq @ before
    y = both[..., :-1] / (both[..., -1:] + EPS)
    return _joined(y, length, v.dtype), TaylorState(final[..., :-1], final[..., -1])


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    """Both sums over the prefix, as two products."""
    wide = _wide(v)
    features = feature_map(k.to(wide))
    if mask is not None:
        features = features * mask.to(wide)[..., None, None]
    return TaylorState(torch.einsum("blhf,blhd->bhfd", features, v.to(wide)), features.sum(1))


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    """Softmax attention in blocks of at least `window` queries, each over its own block of keys and the one before.

    The state that it returns is the keys and values as they are (training has no use for one); a call that brings a
    state or lengths is the reference's.
    """
    if state is not None or lengths is not None or not v.shape[1]:
        return reference.sliding_window_attention(q, k, v, window, state, lengths)
    batch, length = v.shape[:2]
    size = -(-window // 16) * 16  # at least a window; aligned, as fused attention likes it
    qc, kc, vc = (_chunks(x, size, q.dtype) for x in (q, k, v))
    keys, values = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], 3) for x in (kc, vc))
    i = torch.arange(size, device=q.device)[:, None] + size
    j = torch.arange(2 * size, device=q.device)[None]
    sees = (j <= i) & (j > i - window)
    blocks = torch.arange(qc.shape[2], device=q.device)[:, None, None]
    sees = sees & ((j >= size) | (blocks > 0))  # the first block has none before it
    y = F.scaled_dot_product_attention(
        qc.flatten(1, 2), keys.flatten(1, 2), values.flatten(1, 2), attn_mask=sees.repeat(q.shape[2], 1, 1)
    ).view_as(qc)
    seen = torch.full((batch,), length, dtype=torch.int64, device=v.device)
    return _joined(y, length, v.dtype), WindowState(k, v, seen)


def gated_short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The reference, already one pass."""
    return reference.gated_short_conv(a, b, weight, bias, state, lengths)


BACKENDS.setdefault(
    NAME,
    Backend(
        None,
        (torch.float32, torch.bfloat16, torch.float16, torch.float64),
        {
            "taylor_linear_attention": taylor_linear_attention,
            "encode_prefix": encode_prefix,
            "sliding_window_attention": sliding_window_attention,
            "gated_short_conv": gated_short_conv,
        },
    ),
)
