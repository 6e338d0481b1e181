"""Sliding windows in blocks (what the backend "cuda" takes) against the formula and the reference; they run on any device."""

from __future__ import annotations

import kernel_oracle as oracle
import pytest
import torch
from kernel_oracle import TOLERANCE
from torch import Tensor

from jrt_eval.kernels.sliding_window_attention import cuda as windows
from jrt_eval.kernels.sliding_window_attention import parallel, reference


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [1, 5, 16, 17, 129])
@pytest.mark.parametrize("length", [1, 16, 33, 300])
def test_blocks(length: int, window: int, dtype: torch.dtype) -> None:
    q, k, v = normal(3, length, 2, 24, dtype=dtype)
    y, _ = windows.sliding_window_attention(q, k, v, window, None, None)
    assert y.dtype == dtype
    assert oracle.error(y, oracle.window(q, k, v, window)) < TOLERANCE[dtype]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [1, 17, 129])
@pytest.mark.parametrize("length", [1, 33, 300])
def test_flash_on_a_gpu(length: int, window: int, dtype: torch.dtype) -> None:
    """FlashAttention's windows, on tensors cut from one, with gradients."""
    g = torch.Generator().manual_seed(length)
    qkv = torch.randn(3, length, 3, 2, 112, generator=g).to("cuda", dtype).requires_grad_()
    assert windows._flash(*qkv.unbind(2)[:2])
    y, _ = windows.sliding_window_attention(*qkv.unbind(2), window, None, None)
    exact = qkv.detach().cpu().double().requires_grad_()
    want = oracle.window(*exact.unbind(2), window)
    assert y.dtype == dtype
    assert oracle.error(y.detach().cpu(), want.detach()) < TOLERANCE[dtype]
    weights = torch.randn(y.shape, generator=g)
    (got,) = torch.autograd.grad(y, qkv, weights.to("cuda", dtype))
    (gradient,) = torch.autograd.grad(want, exact, weights.to(dtype).double())
    assert oracle.error(got.cpu(), gradient) < 4 * TOLERANCE[dtype]


def test_more_blocks_than_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MOST_BLOCKS", 4)
    q, k, v = normal(3, 70, 2, 8)
    y, _ = windows.sliding_window_attention(q, k, v, 16, None, None)
    assert oracle.error(y, oracle.window(q, k, v, 16)) < 1e-5


@pytest.mark.parametrize("window", [1, 5, 17, 48])
@pytest.mark.parametrize("length", [0, 1, 48, 100])
def test_states_continue(length: int, window: int) -> None:
    """Rows whose states have seen nothing, less than a window, and more than a window."""
    first = normal(3, 60, 2, 8)
    _, state = reference.sliding_window_attention(*first, window, None, torch.tensor([0, 3, 60]))
    q, k, v = normal(3, length, 2, 8, seed=1)
    counts = torch.tensor([0, length // 2, length])
    want, last = reference.sliding_window_attention(q, k, v, window, state, counts)
    got, mine = windows.sliding_window_attention(q, k, v, window, state, counts)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(mine, last, strict=True))
    if length:
        step = (x[:, 0] for x in (q, k, v))
        want = reference.sliding_window_attention_step(q[:, 0], k[:, 0], v[:, 0], last)
        torch.testing.assert_close(windows.sliding_window_attention_step(*step, mine), want, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(mine, last, strict=True))


def test_gradients() -> None:
    qkv = [x.requires_grad_() for x in normal(2, 70, 2, 8)]
    got = torch.autograd.grad(windows.sliding_window_attention(*qkv, 20, None, None)[0].square().sum(), qkv)
    want = torch.autograd.grad(oracle.window(*qkv, 20).square().sum(), qkv)
    for mine, theirs in zip(got, want, strict=True):
        assert oracle.error(mine, theirs) < 2e-5
