"""Causal linear attention over given features in PyTorch, chunk by chunk; see taylor_linear_attention.reference."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.layout import heads_first, weighted_sum, wide

CHUNK = 64


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = wide(v.dtype)
    out_dtype = v.dtype
    q, k, v = heads_first(q, dtype), heads_first(k, dtype), heads_first(v, dtype)
    kv = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state.to(dtype)
    ys = []
    for start in range(0, q.shape[2], CHUNK):
        qc, kc, vc = (x[:, :, start : start + CHUNK] for x in (q, k, v))
        p = (qc @ kc.transpose(-1, -2)).tril()
        sees = torch.ones(p.shape[-2:], dtype=torch.bool, device=p.device).tril()
        ys.append(weighted_sum(p, vc, sees) + qc @ kv)
        kv = kv + kc.transpose(-1, -2) @ vc
    y = torch.cat(ys, 2) if ys else v
    if state is not None and not ys:
        kv = kv.clone()
    return y.transpose(1, 2).to(out_dtype), kv
