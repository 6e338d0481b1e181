"""The gradient of the causal dot product in PyTorch, in memory linear in length.

It walks over segments of a sequence, forward for the queries' gradients and back for the others', and forms the scores of one
segment at a time. Inside a segment chunks are one more dimension of the tensors, so that a GPU gets large products. Sums and
results are float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jrt_eval.kernels.layout import heads_first, wide

CHUNK, SEGMENT = 64, 1024


def segments(length: int) -> Iterator[slice]:
    for start in range(0, length, SEGMENT):
        yield slice(start, min(start + SEGMENT, length))


def _chunks(x: Tensor) -> Tensor:
    """(batch, heads, tokens, dim) -> (batch, heads, chunks, CHUNK, dim), zeros behind the end."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % CHUNK))
    return x.unflatten(2, (-1, CHUNK))


def walk(u: Tensor, other_x: Tensor, other_u: Tensor, sums: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """r_i = sum (u_i . u'_j) x'_j over j <= i (i <= j when going `back`) and over `sums` = sum x'_j u'_j^T; and the new sums.

    All (batch, heads, tokens, dim), sums (batch, heads, features, values).
    """
    tokens = u.shape[2]
    u, other_x, other_u = _chunks(u), _chunks(other_x), _chunks(other_u)
    each = other_x.transpose(-1, -2) @ other_u
    total = each.flip(2).cumsum(2).flip(2) if back else each.cumsum(2)
    p = u @ other_u.transpose(-1, -2)
    r = (p.triu() if back else p.tril()) @ other_x
    r = r + u @ (total - each + sums[:, :, None]).transpose(-1, -2)
    return r.flatten(2, 3)[:, :, :tokens], sums + (total[:, :, 0] if back else total[:, :, -1])


def heads(x: Tensor) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, length, dim), in the dtype of sums."""
    return heads_first(x, wide(x.dtype))


def causal_dot_product_backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, gy: Tensor, g_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the initial state of y_i = q_i.S_0 + sum_{j<=i} (q_i.k_j) v_j."""
    dtype = wide(v.dtype)
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    sums = torch.zeros_like(g_state, dtype=dtype) if state is None else state.to(dtype)
    for at in segments(v.shape[1]):
        kc, vc, gc = (heads(x[:, at]) for x in (k, v, gy))
        r, sums = walk(gc, kc, vc, sums, back=False)
        dq[:, at] = r.transpose(1, 2)
    after = g_state.to(dtype)
    for at in reversed(list(segments(v.shape[1]))):
        qc, kc, vc, gc = (heads(x[:, at]) for x in (q, k, v, gy))
        r, more = walk(vc, qc, gc, after, back=True)
        dk[:, at] = r.transpose(1, 2)
        r, _ = walk(kc, gc, qc, after.transpose(-1, -2), back=True)
        dv[:, at] = r.transpose(1, 2)
        after = more
    return dq, dk, dv, after
