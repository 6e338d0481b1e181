"""NaN and infinity reach only the outputs that see them: not earlier tokens, other windows, rows or heads, nor masked positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jrt_eval.kernels import (
    causal_dot_product,
    encode_prefix,
    prefix_linear_attention,
    short_conv,
    sliding_window_attention,
    sliding_window_attention_step,
    taylor_linear_attention,
)

LENGTH = 150


def normal(*shape: int, seed: int, device: str) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def inputs(device: str, d: int = 5, f: int = 20) -> list[Tensor]:
    return [normal(2, LENGTH, 2, n, seed=seed, device=device) for seed, n in enumerate((d, d, f))]


bad = pytest.mark.parametrize("bad", [float("nan"), float("inf")])


@bad
@pytest.mark.parametrize("at", [0, 5, 63, 64, 100, 149])
@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_later_tokens(where: tuple[str, str], which: int, at: int, bad: float) -> None:
    backend, device = where
    clean, dirty = inputs(device), inputs(device)
    dirty[which][1, at, 0] = bad
    for run in (taylor_linear_attention, causal_dot_product):
        want, got = (run(*x, backend=backend)[0] for x in (clean, dirty))
        assert not got[1, at, 0].isfinite().all()
        torch.testing.assert_close(got[1, :at], want[1, :at])
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(got[:, :, 1], want[:, :, 1])
        if which == 0:
            torch.testing.assert_close(got[1, at + 1 :], want[1, at + 1 :])


@bad
@pytest.mark.parametrize("decayed", [False, True])
def test_masked_tokens(where: tuple[str, str], decayed: bool, bad: float) -> None:
    """Outputs, states and gradients are those of any other masked value."""
    backend, device = where
    clean, dirty = inputs(device), inputs(device)
    mask = torch.ones(2, LENGTH, device=device)
    mask[1, 90:] = 0
    mask[0, 3] = 0
    for x in dirty[1:]:
        x[mask == 0] = bad
    decay = torch.tensor([0.9, 0.8], device=device) if decayed else None
    results = []
    for x in (clean, dirty):
        leaves = [y.clone().requires_grad_() for y in x]
        y, state = taylor_linear_attention(*leaves, mask=mask, decay=decay, backend=backend)
        with torch.no_grad():
            prefix = prefix_linear_attention(*x, *x[1:], mask=mask, mask_enc=mask, decay=decay, backend=backend)[0]
        encoded = encode_prefix(*leaves[1:], mask, backend=backend)
        total = y.square().sum() + state.kv.square().sum() + (encoded.kv.square().sum() + encoded.k.sum()) * 1e-3
        gradients = torch.autograd.grad(total, leaves)
        results.append([y, *state, prefix, *encoded, *gradients])
    for got, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, want)


@bad
@pytest.mark.parametrize("length", [LENGTH, 2100])  # in one part, and cut into segments
@pytest.mark.parametrize(
    ("dtype", "d", "f"), [(torch.bfloat16, 16, 64), (torch.float16, 16, 64), (torch.bfloat16, 8, 32)]
)
def test_masked_tokens_in_16_bits(
    where: tuple[str, str], dtype: torch.dtype, d: int, f: int, length: int, bad: float
) -> None:
    """The kernels on tensor cores, of Hopper and of other GPUs."""
    backend, device = where
    if length > LENGTH and backend != "cuda":
        pytest.skip("only the CUDA kernels cut rows of this length")
    q, k, v = (
        normal(2, length, 2, n, seed=seed, device=device).to(dtype).contiguous() for seed, n in enumerate((d, d, f))
    )
    mask = torch.ones(2, length, device=device)
    mask[1, length // 2 :] = 0
    mask[0, 3] = 0
    dirty_k, dirty_v = k.clone(), v.clone()
    dirty_k[mask == 0] = dirty_v[mask == 0] = bad
    results = []
    for keys, values in ((k, v), (dirty_k, dirty_v)):
        y, state = taylor_linear_attention(q, keys, values, mask=mask, backend=backend)
        z, last = prefix_linear_attention(q, keys, values, keys, values, mask=mask, mask_enc=mask, backend=backend)
        results.append([y, *state, z, *last, *encode_prefix(keys, values, mask, backend=backend)])
    for got, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, want)


@bad
@pytest.mark.parametrize("window", [1, 7, 70])
@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_windows(where: tuple[str, str], which: int, window: int, bad: float) -> None:
    backend, device = where
    if backend in ("cuda", "parallel"):
        pytest.skip("PyTorch's fused attention multiplies masked values by 0")
    at = 66
    clean, dirty = inputs(device, 20), inputs(device, 20)
    dirty[which][1, at, 0] = bad
    want, got = (sliding_window_attention(*x, window, backend=backend)[0] for x in (clean, dirty))
    sees = slice(at, at + 1) if which == 0 else slice(at, at + window)
    if which != 1 or bad != float("inf"):  # a key of minus infinity in the scores is one that counts for nothing
        assert not got[1, at, 0].isfinite().all()
    got[1, sees, 0] = want[1, sees, 0]
    torch.testing.assert_close(got, want)


def test_a_row_that_is_shorter_keeps_padding_out_of_its_ring(where: tuple[str, str]) -> None:
    backend, device = where
    x = inputs(device, 20)
    x[2][1, 3:] = float("nan")
    lengths = torch.tensor([LENGTH, 3], device=device)
    _, state = sliding_window_attention(*x, 7, lengths=lengths, backend=backend)
    assert state.v.isfinite().all()
    x[2][0, 0] = float("nan")  # the token that an empty slot's index is clamped to
    _, state = sliding_window_attention(
        *(y[:, :1] for y in x), 7, lengths=torch.tensor([0, 0]).to(device), backend=backend
    )
    assert state.v.isfinite().all()
    step = [normal(2, 2, 20, seed=9, device=device) for _ in range(3)]
    assert sliding_window_attention_step(*step, state, backend=backend).isfinite().all()


@bad
def test_convolutions(where: tuple[str, str], bad: float) -> None:
    backend, device = where
    a, b = (normal(2, 40, 6, seed=seed, device=device) for seed in (0, 1))
    weight = normal(6, 3, seed=2, device=device)
    want, _ = short_conv(a, weight, gate=b, backend=backend)
    a[1, 20, 2] = bad
    got, _ = short_conv(a, weight, gate=b, backend=backend)
    got[1, 20:23, 2] = want[1, 20:23, 2]
    torch.testing.assert_close(got, want)
