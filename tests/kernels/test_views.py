"""Decode steps honour PyTorch's lazily negated views, and states are never integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from serving import serving
from torch import Tensor

from jrt_eval import kernels
from jrt_eval.errors import UserError
from jrt_eval.kernels import TaylorState, WindowState


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def negated(x: Tensor) -> Tensor:
    """The values of x in memory of the opposite sign."""
    y: Tensor = torch._neg_view(-x)
    assert y.is_neg()
    return y


def taylor(backend: str, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor) -> Tensor:
    return kernels.taylor_linear_attention_step(q, k, v, TaylorState(kv, k_sum), decay=decay, backend=backend)


def window(backend: str, q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor) -> Tensor:
    seen = torch.tensor([2, 9], device=q.device)
    return kernels.sliding_window_attention_step(q, k, v, WindowState(ring_k, ring_v, seen), backend=backend)


def conv(backend: str, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
    return kernels.short_conv_step(a, weight, bias, state, gate=b, backend=backend)


def scan(
    backend: str, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, state: Tensor
) -> Tensor:
    return kernels.selective_scan_step(x, dt, a, b, c, state, d, z, backend=serving(backend, "selective_scan_step"))


def ssd(
    backend: str, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, state: Tensor
) -> Tensor:
    return kernels.ssd_step(x, dt, a, b, c, state, d, z, backend=serving(backend, "ssd_step"))


def imaginary(x: Tensor) -> Tensor:
    """The same by PyTorch's public functions."""
    y = torch.complex(x, -x).conj().imag
    assert y.is_neg()
    return y


STEPS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "taylor_linear_attention_step": (
        taylor,
        [*(normal(2, 3, 4, seed=i) for i in range(3)), normal(2, 3, 15, 4), normal(2, 3, 15).abs() + 9, torch.rand(3)],
    ),
    "sliding_window_attention_step": (
        window,
        [*(normal(2, 3, 4, seed=i) for i in range(3)), normal(2, 5, 3, 4, seed=4), normal(2, 5, 3, 4, seed=5)],
    ),
    "short_conv_step": (
        conv,
        [normal(2, 6), normal(2, 6, seed=1), normal(6, 3), normal(6, seed=2), normal(2, 2, 6, seed=3)],
    ),
    "selective_scan_step": (
        scan,
        [
            normal(2, 6),
            torch.rand(2, 6),
            -torch.rand(6, 4),
            *(normal(2, 4, seed=i) for i in (1, 2)),
            normal(6),
            normal(2, 6, seed=3),
            normal(2, 6, 4, seed=4),
        ],
    ),
    "ssd_step": (
        ssd,
        [
            normal(2, 3, 5),
            torch.rand(2, 3),
            -torch.rand(3),
            *(normal(2, 1, 4, seed=i) for i in (1, 2)),
            normal(3),
            normal(2, 3, 5, seed=3),
            normal(2, 3, 5, 4, seed=4),
        ],
    ),
}


@pytest.mark.parametrize(
    ("name", "which"), [(name, i) for name, (_, arguments) in STEPS.items() for i in range(len(arguments))]
)
def test_negated_views(where: tuple[str, str], name: str, which: int) -> None:
    backend, device = where
    run, arguments = STEPS[name]
    plain, views = ([x.clone().to(device) for x in arguments] for _ in range(2))
    # The quick way of a step trusts that inputs with a stride of 1 are no such views, as PyTorch's public functions make none.
    quick = name == "taylor_linear_attention_step" and which < 3
    views[which] = (imaginary if quick else negated)(views[which])
    for _ in range(2):  # the second step starts from the updated state, and uses the quick step if there is one
        torch.testing.assert_close(run(backend, *views), run("torch", *plain), rtol=1e-4, atol=1e-5)
    for got, want in zip(views, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


x4 = torch.ones(2, 5, 3, 4)
WHOLE = torch.ones(2, 3, 15, 4), torch.ones(2, 3, 15), torch.ones(2, 2, 3, 4), torch.ones(2, 2, 12)
ROW = torch.ones(2, 5, 12)
SEEN = torch.ones(2, dtype=torch.int64)
INTEGERS: dict[str, Callable[[str, torch.dtype], object]] = {
    "state.kv": lambda b, t: kernels.taylor_linear_attention(
        x4, x4, x4, TaylorState(WHOLE[0].to(t), WHOLE[1]), backend=b
    ),
    "state.k": lambda b, t: kernels.taylor_linear_attention(
        x4, x4, x4, TaylorState(WHOLE[0], WHOLE[1].to(t)), backend=b
    ),
    "step's state.kv": lambda b, t: kernels.taylor_linear_attention_step(
        x4[:, 0], x4[:, 0], x4[:, 0], TaylorState(WHOLE[0].to(t), WHOLE[1]), backend=b
    ),
    "decay": lambda b, t: kernels.taylor_linear_attention(x4, x4, x4, decay=torch.ones(3, dtype=t), backend=b),
    "causal_dot_product": lambda b, t: kernels.causal_dot_product(
        x4, x4, x4, torch.ones(2, 3, 4, 4, dtype=t), backend=b
    ),
    "ring": lambda b, t: kernels.sliding_window_attention(
        x4, x4, x4, 2, WindowState(WHOLE[2].to(t), WHOLE[2], SEEN), backend=b
    ),
    "step's ring": lambda b, t: kernels.sliding_window_attention_step(
        x4[:, 0], x4[:, 0], x4[:, 0], WindowState(WHOLE[2], WHOLE[2].to(t), SEEN), backend=b
    ),
    "convolution": lambda b, t: kernels.short_conv(ROW, torch.ones(12, 3), None, WHOLE[3].to(t), backend=b),
    "step's convolution": lambda b, t: kernels.short_conv_step(
        ROW[:, 0], torch.ones(12, 3), None, WHOLE[3].to(t), backend=b
    ),
    "selective_scan": lambda b, t: kernels.selective_scan(
        ROW, ROW, -torch.ones(12, 4), *([torch.ones(2, 5, 4)] * 2), state=torch.ones(2, 12, 4, dtype=t), backend=b
    ),
    "weight": lambda b, t: kernels.short_conv(ROW, torch.ones(12, 3, dtype=t), backend=b),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", INTEGERS)
def test_states_are_floating(name: str, dtype: torch.dtype, backend: str) -> None:
    with pytest.raises(UserError, match=rf"{dtype!s}.*expected"):
        INTEGERS[name](backend, dtype)


def test_lengths_are_integers() -> None:
    with pytest.raises(UserError, match="expected integers"):
        kernels.short_conv(ROW, torch.ones(12, 3), lengths=torch.tensor([2.5, 1.0]))
