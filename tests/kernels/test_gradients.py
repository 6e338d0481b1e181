"""Gradients of every operator on every backend, against autograd through the quadratic float64 formulas."""

from __future__ import annotations

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval.kernels import (
    TaylorState,
    causal_dot_product,
    encode_prefix,
    feature_map,
    short_conv,
    sliding_window_attention,
    taylor_linear_attention,
)

Where = tuple[str, str]


def leaves(device: str, *shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g).to(device).requires_grad_() for shape in shapes]


def same_gradients(got: Tensor, want: Tensor, inputs: list[Tensor], bound: float = 2e-5) -> None:
    """Gradients of two scalars that should be equal."""
    for mine, theirs in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        assert oracle.error(mine, theirs) < bound


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("length", "d", "f"), [(2, 16, 64), (64, 16, 64), (130, 16, 64), (200, 5, 15), (70, 32, 17), (100, 7, 33)]
)
def test_taylor(where: Where, length: int, d: int, f: int, masked: bool) -> None:
    backend, device = where
    qkv = leaves(device, (2, length, 2, d), (2, length, 2, d), (2, length, 2, f))
    mask = (
        torch.arange(length, device=device) < torch.tensor([[length], [(length + 1) // 2]], device=device)
        if masked
        else None
    )
    y, _ = taylor_linear_attention(*qkv, mask=mask, backend=backend)
    want = oracle.taylor(*qkv, mask=mask)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(device)
    same_gradients((y * g).sum(), (want * g).sum(), qkv)


def test_taylor_between_states(where: Where) -> None:
    backend, device = where
    qkv = leaves(device, (2, 100, 2, 16), (2, 100, 2, 16), (2, 100, 2, 24))
    prefix = leaves(device, (2, 80, 2, 16), (2, 80, 2, 24), seed=1)
    state = encode_prefix(*prefix, backend=backend)
    y, final = taylor_linear_attention(*qkv, state, backend=backend)
    want = oracle.taylor(*qkv, prefix=(prefix[0], prefix[1]))
    both_k, both_v = torch.cat([prefix[0], qkv[1]], 1), torch.cat([prefix[1], qkv[2]], 1)
    fk = feature_map(both_k.double().transpose(1, 2))
    kv = fk.transpose(-1, -2) @ both_v.double().transpose(1, 2)
    g = torch.Generator().manual_seed(5)
    gy, g_kv, g_k = (torch.randn(x.shape, generator=g).to(device) for x in (y, kv, final.k))
    got_sum = (y * gy).sum() + (final.kv * g_kv).sum() + (final.k * g_k).sum()
    same_gradients(got_sum, (want * gy).sum() + (kv * g_kv).sum() + (fk.sum(-2) * g_k).sum(), [*qkv, *prefix])


def test_taylor_with_decay(where: Where) -> None:
    backend, device = where
    qkv = leaves(device, (1, 90, 2, 8), (1, 90, 2, 8), (1, 90, 2, 16))
    decay = torch.tensor([0.5, 0.98], device=device)
    y, _ = taylor_linear_attention(*qkv, decay=decay, backend=backend)
    same_gradients(y.square().sum(), oracle.taylor(*qkv, decay=decay).square().sum(), qkv)


def test_taylor_of_any_strides(where: Where) -> None:
    backend, device = where
    q, k, v = leaves(device, (8, 2, 90, 1), (2, 90, 8, 1), (1, 90, 2, 16))
    views = q.permute(3, 2, 1, 0), k.permute(3, 1, 0, 2), v
    y, _ = taylor_linear_attention(*views, backend=backend)
    g = torch.ones((), device=device).expand(y.shape)  # a gradient of stride 0
    same_gradients((y * g).sum() * 3, oracle.taylor(*views).sum() * 3, [q, k, v])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(where: Where, dtype: torch.dtype) -> None:
    backend, device = where
    qkv = [
        x.detach().to(dtype).requires_grad_() for x in leaves(device, (1, 150, 2, 16), (1, 150, 2, 16), (1, 150, 2, 64))
    ]
    y, _ = taylor_linear_attention(*qkv, backend=backend)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(device, dtype)
    same_gradients((y * g).sum(dtype=torch.float32), (oracle.taylor(*qkv) * g).sum(), qkv, 2e-2)


@pytest.mark.parametrize(("length", "n", "f"), [(1, 3, 8), (130, 33, 20), (64, 153, 64), (200, 16, 33)])
def test_causal_dot_product(where: Where, length: int, n: int, f: int) -> None:
    backend, device = where
    qkv = leaves(device, (2, length, 2, n), (2, length, 2, n), (2, length, 2, f))
    y, state = causal_dot_product(*qkv, backend=backend)
    want_state = torch.einsum("bjhn,bjhf->bhnf", qkv[1].double(), qkv[2].double())
    g = torch.Generator().manual_seed(5)
    gy, gs = torch.randn(y.shape, generator=g).to(device), torch.randn(state.shape, generator=g).to(device)
    same_gradients(
        (y * gy).sum() + (state * gs).sum(), (oracle.causal_product(*qkv) * gy).sum() + (want_state * gs).sum(), qkv
    )


def test_decay_alone_may_be_learnt(cpu: str) -> None:
    q, k, v = (torch.randn(1, 80, 2, x, generator=torch.Generator().manual_seed(x)) for x in (4, 4, 6))
    decay = torch.tensor([0.9, 0.5], requires_grad=True)
    grads = []
    for backend in (cpu, "torch"):
        y, _ = taylor_linear_attention(q, k, v, decay=decay, backend=backend)
        grads.append(torch.autograd.grad(y.square().sum(), decay)[0])
    torch.testing.assert_close(*grads)


def test_window(where: Where) -> None:
    backend, device = where
    qkv = leaves(device, (2, 150, 2, 16), (2, 150, 2, 16), (2, 150, 2, 16))
    y, _ = sliding_window_attention(*qkv, 40, backend=backend)
    same_gradients(y.square().sum(), oracle.window(*qkv, 40).square().sum(), qkv)


def test_conv(where: Where) -> None:
    backend, device = where
    inputs = leaves(device, (2, 20, 12), (2, 20, 12), (12, 1, 3), (12,))
    a, b, weight, bias = inputs
    y, _ = short_conv(a, weight, bias, gate=b, backend=backend)
    padded = torch.cat([a.new_zeros(2, 2, 12), a], 1).double()
    z = sum(padded[:, tap : tap + 20] * weight[:, 0, tap].double() for tap in range(3)) + bias
    same_gradients(y.square().sum(), (torch.nn.functional.silu(z) * b).square().sum(), inputs)


def test_gradcheck_of_the_reference() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 67, 1, x, dtype=torch.float64, generator=g).requires_grad_() for x in (3, 3, 2))
    kv = torch.randn(1, 1, 10, 2, dtype=torch.float64, generator=g).requires_grad_()
    k_sum = (torch.rand(1, 1, 10, dtype=torch.float64, generator=g) + torch.tensor([50.0] + [0.0] * 9)).requires_grad_()

    def run(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor) -> tuple[Tensor, ...]:
        y, state = taylor_linear_attention(q, k, v, TaylorState(kv, k_sum), backend="torch")
        return y, *state

    assert torch.autograd.gradcheck(run, (q, k, v, kv, k_sum), fast_mode=True)

    def product(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return causal_dot_product(q, k, v, backend="torch")

    assert torch.autograd.gradcheck(product, (q, k, v), fast_mode=True)
