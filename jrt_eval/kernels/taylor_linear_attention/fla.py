"""Taylor linear attention by flash-linear-attention, bfloat16 on a GPU, where our own kernels are not built.

fla's Based operators (`parallel_based`, `fused_chunk_based`) take no state and no mask, return no state and add 1e-6 to the normaliser.
Its causal linear attention over given features, with our 153 features and a column of ones for the normaliser, is this operator; the
features are then tensors in memory, twice 306 bytes per token and head. bfloat16 only: fla multiplies float32 as TF32, and float16
cannot represent the sums. Decay and unsupported sizes use the PyTorch reference. Gradients are fla's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.causal_dot_product.fla import product, takes
from jrt_eval.kernels.layout import unmasked
from jrt_eval.kernels.taylor_linear_attention import reference
from jrt_eval.kernels.taylor_linear_attention.features import feature_map, num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    if decay is not None or not takes(v, num_features(q.shape[-1])):
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    k, v = unmasked(k, mask), unmasked(v, mask)
    fq, fk = (feature_map(x.to(torch.float32)) for x in (q, k))
    if mask is not None:
        fk = fk * mask.to(torch.float32)[..., None, None]
    values = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    sums = None if state is None else torch.cat([state.kv, state.k[..., None]], -1)
    both, final = product(fq.to(v.dtype), fk.to(v.dtype), values, sums)
    both = both.to(torch.float32)
    y = both[..., :-1] / (both[..., -1:] + reference.EPS)
    return y.to(v.dtype), TaylorState(final[..., :-1].contiguous(), final[..., -1].contiguous())
