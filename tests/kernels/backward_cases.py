"""Gradients of Taylor linear attention and of a prefix, as one of the backward modules computes them and as autograd does in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import TaylorState, feature_map, num_features
from jrt_eval.kernels.taylor_linear_attention import reference


@dataclass(frozen=True)
class Case:
    length: int
    d: int
    f: int
    batch: int = 2
    heads: int = 2
    masked: bool = False
    state: bool = False
    dtype: torch.dtype = torch.float32
    shortest: int = 512  # tokens in a part, at least


CASES = {
    "one token": Case(1, 16, 64),
    "no token": Case(0, 16, 64, state=True),
    "two chunks": Case(50, 16, 64, masked=True),
    "in parts": Case(130, 16, 64, batch=1, state=True, masked=True, shortest=32),
    "in parts, no state": Case(70, 16, 20, batch=1, shortest=16),
    "small": Case(40, 5, 15, state=True, masked=True),
    "wide": Case(40, 32, 17, batch=1, masked=True),
    "wide, bfloat16": Case(40, 32, 17, batch=1, state=True, dtype=torch.bfloat16),
    "wide values": Case(35, 7, 128, batch=1, state=True),
    "bfloat16": Case(130, 16, 64, batch=1, state=True, masked=True, dtype=torch.bfloat16, shortest=64),
    "float16": Case(70, 16, 64, batch=1, dtype=torch.float16),
}


def gap(got: Tensor, want: Tensor) -> float:
    """Relative to the norm, or to a gradient of 1 where it is smaller (one token has no gradient for its query)."""
    if not want.numel():
        assert got.shape == want.shape
        return 0.0
    return float((got.double() - want).norm()) / max(float(want.norm()), want.numel() ** 0.5)


def errors(module: Any, case: Case, device: str = "cpu") -> list[float]:
    """Relative errors: of q, k, v, the state's two; then of a prefix' k and v."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device, case.dtype)

    batch, length, heads, d, f = case.batch, case.length, case.heads, case.d, case.f
    q, k, v = normal(batch, length, heads, d), normal(batch, length, heads, d), normal(batch, length, heads, f) + 0.5
    n = num_features(d)
    kv, k_sum = normal(batch, heads, n, f).float(), torch.rand(batch, heads, n, generator=g).to(device) * 0.1
    k_sum[..., 0] += 60
    lengths = torch.tensor([[length], [(length + 1) // 2]], device=device)[:batch]
    mask = torch.arange(length, device=device) < lengths if case.masked else None

    exact = [x.double().requires_grad_() for x in (q, k, v, kv, k_sum)]
    state = TaylorState(exact[3], exact[4]) if case.state else None
    y, final = reference.taylor_linear_attention(*exact[:3], state, mask, None)
    gy, g_kv, g_k = (torch.randn(x.shape, generator=g).to(device, t) for x, t in
                     ((y, case.dtype), (final.kv, torch.float32), (final.k, torch.float32)))  # fmt: skip
    total = (y * gy).sum() + (final.kv * g_kv).sum() + (final.k * g_k).sum()
    inputs = exact if case.state else exact[:3]
    want = torch.autograd.grad(total, inputs, materialize_grads=True)

    fq, fk = (feature_map(x.detach().transpose(1, 2)) for x in exact[:2])
    p = (fq @ fk.transpose(-1, -2)).tril()
    below = (p if mask is None else p * mask[:, None, None]).sum(-1)
    if case.state:
        below = below + (fq @ exact[4].detach()[..., None])[..., 0]
    # unusual strides of a caller: q transposed, gy of stride 0
    across = q.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    got = module.taylor_backward(
        across, k, v, kv if case.state else None, k_sum if case.state else None, mask,
        y.detach().to(case.dtype), below.transpose(1, 2).float(), gy, g_kv, g_k,
    )  # fmt: skip
    found = [gap(a, b) for a, b in zip(got, want, strict=False)]

    sums = reference.encode_prefix(exact[1], exact[2], mask)
    want = torch.autograd.grad(
        (sums.kv * g_kv).sum() + (sums.k * g_k).sum() + exact[1].sum() * 0, exact[1:3], materialize_grads=True
    )
    got = module.encode_backward(k, v, mask, g_kv, g_k)
    return found + [gap(a, b) for a, b in zip(got, want, strict=True)]
