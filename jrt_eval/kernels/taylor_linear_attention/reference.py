"""Taylor linear attention in PyTorch: the specification, the fallback on any device, and differentiable by autograd.

The functions walk over chunks of 64 tokens: inside a chunk the scores are formed (64 x 64), between chunks the state carries
the earlier tokens. No tensor has the size length x length or length x features x head_dim; time is linear in length.
The arguments are those of the public functions, which check them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.layout import heads_first, unmasked, weighted_sum, wide
from jrt_eval.kernels.taylor_linear_attention.features import feature_map, num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState

CHUNK = 64
EPS = 1e-12


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    dtype = wide(v.dtype)
    batch, length, heads, head_dim = v.shape
    n = num_features(q.shape[-1])
    out_dtype = v.dtype
    k, v = unmasked(k, mask), unmasked(v, mask)
    q, k, v = heads_first(q, dtype), heads_first(k, dtype), heads_first(v, dtype)
    if state is None:
        kv = v.new_zeros(batch, heads, n, head_dim)
        k_sum = v.new_zeros(batch, heads, n)
    else:
        kv, k_sum = state.kv.to(dtype), state.k.to(dtype)
    weight = None if mask is None else mask.to(dtype)[:, None, :, None]  # (batch, 1, length, 1)
    scale = q.shape[-1] ** -0.5
    rate = None if decay is None else decay.to(dtype)[:, None]  # (heads, 1)
    ys = []
    for start in range(0, length, CHUNK):
        at = slice(start, min(start + CHUNK, length))
        qc, kc, vc = q[:, :, at], k[:, :, at], v[:, :, at]
        s = qc @ kc.transpose(-1, -2) * scale
        p = (1 + s + 0.5 * s * s).tril()
        sees = torch.ones(p.shape[-2:], dtype=torch.bool, device=p.device).tril()
        fq, fk = feature_map(qc), feature_map(kc)
        if weight is not None:
            p = p * weight[:, :, at].transpose(-1, -2)
            fk = fk * weight[:, :, at]
        denominator = p.sum(-1, keepdim=True) + fq @ k_sum[..., None]
        if rate is None:
            numerator = weighted_sum(p, vc, sees) + fq @ kv
            kv = kv + fk.transpose(-1, -2) @ vc
        else:
            # A masked position does not count: decay goes by the number of tokens between i and j.
            if weight is None:
                age = torch.arange(1, qc.shape[2] + 1, device=v.device, dtype=dtype).expand(batch, 1, -1)
            else:
                age = (weight[:, :, at, 0] != 0).to(dtype).cumsum(-1)  # (batch, 1, chunk)
            gap = (age[..., :, None] - age[..., None, :]).clamp(min=0)
            numerator = weighted_sum(p * rate[..., None] ** gap, vc, sees) + (rate**age)[..., None] * (fq @ kv)
            last = age[..., -1:]
            kv = (rate**last)[..., None] * kv + (fk * (rate ** (last - age))[..., None]).transpose(-1, -2) @ vc
        ys.append(numerator / (denominator + EPS))
        k_sum = k_sum + fk.sum(-2)
    y = torch.cat(ys, 2) if ys else v
    if state is not None and not ys:
        kv, k_sum = kv.clone(), k_sum.clone()
    return y.transpose(1, 2).to(out_dtype), TaylorState(kv, k_sum)


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    dtype = wide(v.dtype)
    k, v = heads_first(unmasked(k, mask), dtype), heads_first(unmasked(v, mask), dtype)
    n = num_features(k.shape[-1])
    kv = v.new_zeros(*v.shape[:2], n, v.shape[-1])
    k_sum = v.new_zeros(*v.shape[:2], n)
    step = 4 * CHUNK  # no scores here, so larger pieces
    for start in range(0, k.shape[2], step):
        fk = feature_map(k[:, :, start : start + step])
        if mask is not None:
            fk = fk * mask[:, None, start : start + step, None].to(dtype)
        kv = kv + fk.transpose(-1, -2) @ v[:, :, start : start + step]
        k_sum = k_sum + fk.sum(-2)
    return TaylorState(kv, k_sum)


def prefix_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    mask: Tensor | None,
    mask_enc: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, TaylorState]:
    return taylor_linear_attention(q, k, v, encode_prefix(k_enc, v_enc, mask_enc), mask, decay)


@torch.no_grad()
def taylor_linear_attention_step(q: Tensor, k: Tensor, v: Tensor, state: TaylorState, decay: Tensor | None) -> Tensor:
    dtype = state.kv.dtype
    fq, fk = feature_map(q.to(dtype)), feature_map(k.to(dtype))
    if decay is not None:
        state.kv.mul_(decay.to(dtype)[:, None, None])
    state.kv.addcmul_(fk[..., None], v.to(dtype)[..., None, :])
    state.k.add_(fk)
    numerator = (fq[..., None, :] @ state.kv)[..., 0, :]
    denominator = (fq * state.k).sum(-1, keepdim=True)
    return (numerator / (denominator + EPS)).to(v.dtype)
