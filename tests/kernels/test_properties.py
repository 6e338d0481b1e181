"""Random shapes, strides, masks, states and splits, against the quadratic formula."""

from __future__ import annotations

import os

import kernel_oracle as oracle
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from jrt_eval.kernels import (
    TaylorState,
    encode_prefix,
    sliding_window_attention,
    taylor_linear_attention,
    taylor_linear_attention_step,
)

Where = tuple[str, str]
relaxed = settings(
    max_examples=int(os.environ.get("JRT_EVAL_TEST_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def laid_out(x: Tensor, how: int) -> Tensor:
    """The same numbers, (batch, length, heads, dim), in another layout."""
    if how == 1:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if how == 2:
        return x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    if how == 3:
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    return x


@relaxed
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(0, 140),
    d=st.integers(4, 32),
    f=st.integers(8, 128),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.tuples(*[st.integers(0, 3)] * 3),
    prefix=st.integers(0, 70),
    masked=st.booleans(),
    decayed=st.booleans(),
    data=st.data(),
)
def test_taylor(
    where: Where,
    seed: int,
    batch: int,
    heads: int,
    length: int,
    d: int,
    f: int,
    dtype: torch.dtype,
    layout: tuple[int, int, int],
    prefix: int,
    masked: bool,
    decayed: bool,
    data: st.DataObject,
) -> None:
    backend, device = where
    g = torch.Generator().manual_seed(seed)
    q, k, ke = (torch.randn(batch, n, heads, d, generator=g).to(dtype) for n in (length, length, prefix))
    v, ve = (torch.randn(batch, n, heads, f, generator=g).to(dtype) + 0.25 for n in (length, prefix))
    mask = torch.rand(batch, length, generator=g) < 0.7 if masked else None
    if mask is not None:
        mask[:, :1] = True
    decay = torch.rand(heads, generator=g) if decayed else None
    if decayed:
        prefix = 0  # the formula's decay starts at the first token
    want = oracle.taylor(q, k, v, (ke, ve) if prefix else None, mask=mask, decay=decay)
    cut = data.draw(st.integers(0, length))
    state = encode_prefix(ke.to(device), ve.to(device), backend=backend) if prefix else None
    parts = []
    for at in (slice(0, cut), slice(cut, length)):
        y, state = taylor_linear_attention(
            *(laid_out(x[:, at].to(device), how) for x, how in zip((q, k, v), layout, strict=True)),
            state,
            mask=None if mask is None else mask[:, at].to(device),
            decay=None if decay is None else decay.to(device),
            backend=backend,
        )
        parts.append(y.cpu())
    assert oracle.error(torch.cat(parts, 1), want) < oracle.TOLERANCE[dtype]


@relaxed
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 90),
    steps=st.integers(1, 4),
    d=st.integers(1, 20),
    f=st.integers(1, 80),
    window=st.integers(1, 100),
)
def test_steps(where: Where, seed: int, length: int, steps: int, d: int, f: int, window: int) -> None:
    backend, device = where
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, length + steps, 2, d, generator=g).to(device) for _ in range(2))
    v = torch.randn(1, length + steps, 2, f, generator=g).to(device)
    _, state = taylor_linear_attention(q[:, :length], k[:, :length], v[:, :length], backend=backend)
    state = TaylorState(state.kv, state.k)
    ys = [
        taylor_linear_attention_step(q[:, t], k[:, t], v[:, t], state, backend=backend)
        for t in range(length, length + steps)
    ]
    want = oracle.taylor(q.cpu(), k.cpu(), v.cpu())[:, length:]
    assert oracle.error(torch.stack(ys, 1).cpu(), want) < 2e-5
    y, _ = sliding_window_attention(v, v, v, window, backend=backend)
    assert oracle.error(y.cpu(), oracle.window(v.cpu(), v.cpu(), v.cpu(), window)) < 1e-5
