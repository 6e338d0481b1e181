"""taylor_linear_attention, encode_prefix and taylor_linear_attention_step against a quadratic float64 formula, on every backend."""

from __future__ import annotations

import kernel_oracle as oracle
import pytest
import torch
from kernel_oracle import TOLERANCE
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.kernels import (
    TaylorState,
    encode_prefix,
    num_features,
    prefix_linear_attention,
    taylor_linear_attention,
    taylor_linear_attention_step,
)
from jrt_eval.kernels.taylor_linear_attention.features import feature_map

Where = tuple[str, str]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(
    batch: int,
    length: int,
    heads: int,
    d: int,
    f: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, length, heads, d, generator=g) for _ in range(2))
    v = torch.randn(batch, length, heads, f, generator=g) + 0.5
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 16, 24, 31, 32])
def test_feature_map_gives_the_truncated_exponential(d: int) -> None:
    q, k = torch.randn(5, d, dtype=torch.float64), torch.randn(5, d, dtype=torch.float64)
    s = (q * k).sum(-1) / d**0.5
    assert feature_map(q).shape == (5, num_features(d))
    torch.testing.assert_close((feature_map(q) * feature_map(k)).sum(-1), 1 + s + s**2 / 2)


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 127, 1000])
def test_lengths(where: Where, length: int) -> None:
    backend, device = where
    q, k, v = inputs(2, length, 2, 16, 64, device=device)
    y, state = taylor_linear_attention(q, k, v, backend=backend)
    assert y.shape == v.shape
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu())) < 1e-5
    whole = encode_prefix(k, v, backend=backend)
    assert oracle.error(state.kv, whole.kv) < 1e-5
    assert oracle.error(state.k, whole.k) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 1000, 2049])
def test_lengths_in_16_bits(where: Where, length: int, dtype: torch.dtype) -> None:
    """In one piece, in two, and as a view whose tokens are not neighbours in memory."""
    backend, device = where
    batch = 2 if length <= 1000 else 1  # the quadratic formula takes most of the time
    q, k, v = (x.to(device, dtype) for x in inputs(batch, length, 2, 16, 64))
    y, state = taylor_linear_attention(q, k, v, backend=backend)
    want = oracle.taylor(q.cpu(), k.cpu(), v.cpu())
    assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
    cut = length // 3
    first, middle = taylor_linear_attention(q[:, :cut], k[:, :cut], v[:, :cut], backend=backend)
    second, last = taylor_linear_attention(q[:, cut:], k[:, cut:], v[:, cut:], middle, backend=backend)
    assert oracle.error(torch.cat([first, second], 1).cpu(), want) < TOLERANCE[dtype]
    bound = oracle.state_tolerance(backend, dtype, 16, 64)
    assert oracle.error(last.kv, state.kv) < bound
    assert oracle.error(last.k, state.k) < bound
    turned = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert oracle.error(taylor_linear_attention(*turned, backend=backend)[0].cpu(), want) < TOLERANCE[dtype]


def test_a_long_sequence(where: Where) -> None:
    backend, device = where
    q, k, v = inputs(1, 4097, 1, 16, 64, device=device)
    y, _ = taylor_linear_attention(q, k, v, backend=backend)
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu())) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "f"), [(4, 8), (5, 9), (8, 33), (16, 64), (16, 112), (17, 70), (24, 17), (31, 127), (32, 128)]
)
def test_dims_and_dtypes(where: Where, d: int, f: int, dtype: torch.dtype) -> None:
    backend, device = where
    q, k, v = inputs(1, 130, 3, d, f, dtype, device)
    y, state = taylor_linear_attention(q, k, v, backend=backend)
    assert y.dtype == dtype
    assert state.kv.dtype == torch.float32
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu())) < TOLERANCE[dtype]
    fk = feature_map(k.double().transpose(1, 2))
    bound = oracle.state_tolerance(backend, dtype, d, f)
    assert oracle.error(state.kv, fk.transpose(-1, -2) @ v.double().transpose(1, 2)) < bound
    assert oracle.error(state.k, fk.sum(-2)) < bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefix_linear_attention(where: Where, dtype: torch.dtype) -> None:
    backend, device = where
    q, k, v = inputs(2, 150, 2, 16, 40, dtype, device)
    _, ke, ve = inputs(2, 77, 2, 16, 40, dtype, device, seed=1)
    keep = torch.arange(77, device=device) < torch.tensor([[77], [20]], device=device)
    state = encode_prefix(ke, ve, keep, backend=backend)
    before = TaylorState(state.kv.clone(), state.k.clone())
    y, _ = taylor_linear_attention(q, k, v, state, backend=backend)
    want = oracle.taylor(q.cpu(), k.cpu(), v.cpu(), (ke.cpu(), ve.cpu()), prefix_mask=keep.cpu())
    assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
    assert torch.equal(before.kv, state.kv)
    assert torch.equal(before.k, state.k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "prefix"), [(150, 77), (1, 64), (64, 1), (130, 0), (0, 70), (777, 1030)])
@pytest.mark.parametrize(("d", "f"), [(16, 64), (16, 112), (8, 24)])
def test_prefix_in_one_go(where: Where, d: int, f: int, length: int, prefix: int, dtype: torch.dtype) -> None:
    """Masks on both sides; the same as the encoder's state and then the tokens."""
    backend, device = where
    q, k, v = inputs(2, length, 2, d, f, dtype, device)
    _, ke, ve = inputs(2, prefix, 2, d, f, dtype, device, seed=1)
    mask = torch.arange(length, device=device) < torch.tensor([[length], [length // 2 + 1]], device=device)
    seen = torch.arange(prefix, device=device) < torch.tensor([[prefix], [prefix // 3]], device=device)
    y, state = prefix_linear_attention(q, k, v, ke, ve, mask=mask, mask_enc=seen, backend=backend)
    want = oracle.taylor(q.cpu(), k.cpu(), v.cpu(), (ke.cpu(), ve.cpu()), mask=mask.cpu(), prefix_mask=seen.cpu())
    assert y.dtype == dtype
    assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
    _, last = taylor_linear_attention(q, k, v, encode_prefix(ke, ve, seen, backend=backend), mask=mask, backend=backend)
    bound = oracle.state_tolerance(backend, dtype, d, f)
    assert oracle.error(state.kv, last.kv) < bound
    assert oracle.error(state.k, last.k) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "prefix"), [(1500, 700), (1500, 1), (1100, 100), (1025, 2049)])
@pytest.mark.parametrize("f", [64, 72])
def test_a_long_row_after_a_prefix(where: Where, f: int, length: int, prefix: int, dtype: torch.dtype) -> None:
    """Few and long rows, which GPUs cut into segments."""
    backend, device = where
    q, k, v = inputs(1, length, 2, 16, f, dtype, device)
    _, ke, ve = inputs(1, prefix, 2, 16, f, dtype, device, seed=1)
    seen = torch.arange(prefix, device=device)[None] < (prefix + 2) // 2
    for mask_enc in (None, seen):
        y, state = prefix_linear_attention(q, k, v, ke, ve, mask_enc=mask_enc, backend=backend)
        kept = (ke, ve) if mask_enc is None else (ke[:, seen[0]], ve[:, seen[0]])
        want = oracle.taylor(q.cpu(), k.cpu(), v.cpu(), tuple(x.cpu() for x in kept))  # type: ignore[arg-type]
        assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
        whole = encode_prefix(torch.cat([kept[0], k], 1), torch.cat([kept[1], v], 1), backend=backend)
        bound = oracle.state_tolerance(backend, dtype, 16, f)
        assert oracle.error(state.kv, whole.kv) < bound
        assert oracle.error(state.k, whole.k) < bound


def test_a_prefix_that_does_not_fit_is_named(where: Where) -> None:
    backend, device = where
    q, k, v = inputs(2, 5, 2, 16, 8, device=device)
    _, ke, ve = inputs(2, 7, 2, 16, 9, device=device)
    with pytest.raises(
        UserError, match=r"prefix_linear_attention: k_enc \(2, 7, 2, 16\) and v_enc \(2, 7, 2, 9\) differ"
    ):
        prefix_linear_attention(q, k, v, ke, ve, backend=backend)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0])
def test_magnitudes(where: Where, scale: float) -> None:
    backend, device = where
    q, k, v = inputs(1, 300, 2, 16, 64, device=device)
    q, k, v = q * scale, k * scale, v * 100
    y, _ = taylor_linear_attention(q, k, v, backend=backend)
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu())) < 1e-5


@pytest.mark.parametrize("decayed", [False, True])
def test_masked_positions_contribute_nothing(where: Where, decayed: bool) -> None:
    backend, device = where
    q, k, v = inputs(3, 140, 2, 8, 24, device=device)
    decay = torch.tensor([0.75, 0.97], device=device) if decayed else None
    lengths = torch.tensor([140, 65, 1], device=device)
    mask = torch.arange(140, device=device) < lengths[:, None]
    y, state = taylor_linear_attention(q, k, v, mask=mask, decay=decay, backend=backend)
    for row, n in enumerate(lengths.tolist()):
        part = (x[row : row + 1, :n] for x in (q, k, v))
        alone, last = taylor_linear_attention(*part, decay=decay, backend=backend)
        assert oracle.error(y[row, :n], alone[0]) < 1e-6
        assert oracle.error(state.kv[row], last.kv[0]) < 1e-6
        assert oracle.error(state.k[row], last.k[0]) < 1e-6


def test_holes_in_the_mask(where: Where) -> None:
    backend, device = where
    q, k, v = inputs(2, 200, 2, 16, 16, device=device)
    mask = torch.rand(2, 200, generator=torch.Generator().manual_seed(3)).to(device) < 0.5
    mask[:, 0] = True  # a query that sees nothing has no defined answer
    y, _ = taylor_linear_attention(q, k, v, mask=mask, backend=backend)
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu(), mask=mask.cpu())) < 1e-5


def test_decay(where: Where) -> None:
    backend, device = where
    q, k, v = inputs(2, 200, 3, 16, 20, device=device)
    decay = torch.tensor([0.0, 0.5, 0.999], device=device)
    y, state = taylor_linear_attention(q, k, v, decay=decay, backend=backend)
    assert oracle.error(y.cpu(), oracle.taylor(q.cpu(), k.cpu(), v.cpu(), decay=decay.cpu())) < 1e-5
    assert oracle.error(state.k, feature_map(k.double().transpose(1, 2)).sum(-2)) < 1e-5


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("cuts", [(64,), (1, 2), (63, 64, 130), (0, 199)])
def test_any_split_agrees(where: Where, cuts: tuple[int, ...], decayed: bool) -> None:
    backend, device = where
    q, k, v = inputs(2, 200, 2, 16, 48, device=device)
    decay = torch.tensor([0.9, 0.99], device=device) if decayed else None
    whole, last = taylor_linear_attention(q, k, v, decay=decay, backend=backend)
    state, parts, start = None, [], 0
    for stop in (*cuts, 200):
        y, state = taylor_linear_attention(
            q[:, start:stop], k[:, start:stop], v[:, start:stop], state, decay=decay, backend=backend
        )
        parts.append(y)
        start = stop
    assert state is not None
    assert oracle.error(torch.cat(parts, 1), whole) < 1e-5
    assert oracle.error(state.kv, last.kv) < 1e-5
    assert oracle.error(state.k, last.k) < 1e-5


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "f"), [(16, 64), (5, 9), (32, 128)])
def test_steps_agree_with_the_whole(where: Where, d: int, f: int, dtype: torch.dtype, decayed: bool) -> None:
    backend, device = where
    q, k, v = inputs(2, 70, 2, d, f, dtype, device)
    decay = torch.tensor([0.9, 0.99], device=device) if decayed else None
    whole, last = taylor_linear_attention(q, k, v, decay=decay, backend=backend)
    _, state = taylor_linear_attention(q[:, :40], k[:, :40], v[:, :40], decay=decay, backend=backend)
    held = (state.kv, state.k)
    ys = [
        taylor_linear_attention_step(q[:, t], k[:, t], v[:, t], state, decay=decay, backend=backend)
        for t in range(40, 70)
    ]
    assert oracle.error(torch.stack(ys, 1), whole[:, 40:]) < TOLERANCE[dtype]
    bound = oracle.state_tolerance(backend, dtype, d, f)
    assert oracle.error(held[0], last.kv) < bound
    assert oracle.error(held[1], last.k) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(where: Where, dtype: torch.dtype) -> None:
    backend, device = where
    q, k, v = inputs(2, 100, 3, 16, 64, dtype, device)
    bound = TOLERANCE[dtype]
    want = oracle.taylor(q.cpu(), k.cpu(), v.cpu())
    flipped = tuple(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in (q, k, v))
    heads_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    tokens_first = tuple(x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3) for x in (q, k, v))
    for a, b, c in (flipped, heads_first, tokens_first):
        y, _ = taylor_linear_attention(a, b, c, backend=backend)
        assert oracle.error(y.cpu(), want) < bound
    one = (x[:1, :, :1] for x in (q, k, v))
    wide = [x.expand(2, -1, 3, -1) for x in one]
    y, _ = taylor_linear_attention(*wide, backend=backend)
    assert oracle.error(y.cpu(), want[:1, :, :1].expand(2, -1, 3, -1)) < bound
    every_other, _ = taylor_linear_attention(*(x[:, ::2] for x in (q, k, v)), backend=backend)
    assert oracle.error(every_other.cpu(), oracle.taylor(*(x[:, ::2].cpu() for x in (q, k, v)))) < bound
