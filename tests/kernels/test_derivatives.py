"""Derivatives beyond the first gradient are right, or raise an error: they are never silently zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from jrt_eval import kernels
from jrt_eval.errors import UserError
from jrt_eval.kernels import TaylorState, WindowState


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n: int = 4, dim: int = 5) -> list[Tensor]:
    return [normal(2, 70, 2, n, seed=1), normal(2, 70, 2, n, seed=2), normal(2, 70, 2, dim, seed=3)]


# Name -> the operator's differentiable inputs, and a function of them and the backend.
CASES: dict[str, tuple[list[Tensor], Callable[..., Any]]] = {
    "taylor_linear_attention": (linear(), lambda q, k, v, **b: kernels.taylor_linear_attention(q, k, v, **b)[0]),
    "with_state": (
        [*linear(), normal(2, 2, 15, 5, seed=4), normal(2, 2, 15, seed=5).abs() + 9],
        lambda q, k, v, kv, k_sum, **b: kernels.taylor_linear_attention(q, k, v, TaylorState(kv, k_sum), **b)[0],
    ),
    "with_decay": (
        [*linear(), torch.tensor([0.9, 0.7])],
        lambda q, k, v, decay, **b: kernels.taylor_linear_attention(q, k, v, decay=decay, **b)[0],
    ),
    "prefix_linear_attention": (
        [*linear(), *linear()[1:]],
        lambda q, k, v, k_enc, v_enc, **b: kernels.prefix_linear_attention(q, k, v, k_enc, v_enc, **b)[0],
    ),
    "encode_prefix": (linear()[1:], lambda k, v, **b: kernels.encode_prefix(k, v, **b).kv),
    "causal_dot_product": (linear(), lambda q, k, v, **b: kernels.causal_dot_product(q, k, v, **b)[0]),
    "sliding_window_attention": (
        linear(6, 6),
        lambda q, k, v, **b: kernels.sliding_window_attention(q, k, v, 9, **b)[0],
    ),
    "short_conv": (
        [normal(2, 70, 6, seed=1), normal(2, 70, 6, seed=2), normal(6, 1, 3, seed=3)],
        lambda a, b, weight, **x: kernels.short_conv(a, weight, gate=b, **x)[0],
    ),
    "selective_scan": (
        [
            normal(2, 20, 6, seed=1),
            normal(2, 20, 6, seed=2).abs(),
            -normal(6, 4).abs(),
            *(normal(2, 20, 4, seed=i) for i in (3, 4)),
        ],
        lambda x, dt, a, b, c, **k: kernels.selective_scan(x, dt, a, b, c, **k)[0],
    ),
    "ssd": (
        [
            normal(2, 20, 3, 4, seed=1),
            normal(2, 20, 3, seed=2).abs(),
            -normal(3).abs(),
            *(normal(2, 20, 1, 4, seed=i) for i in (3, 4)),
        ],
        lambda x, dt, a, b, c, **k: kernels.ssd(x, dt, a, b, c, **k)[0],
    ),
}
each = pytest.mark.parametrize("name", CASES)


def exactly(inputs: list[Tensor]) -> list[Tensor]:
    return [x.double() for x in inputs]


def close(got: Tensor, want: Tensor) -> None:
    assert float(want.abs().max()) > 0
    assert float((got.double() - want).norm() / want.norm()) < 1e-4


@each
def test_second_derivatives(cpu: str, name: str) -> None:
    inputs, run = CASES[name]

    def second(inputs: list[Tensor], backend: str) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in inputs]
        y = run(*inputs, backend=backend)
        first = torch.autograd.grad((y * y.detach().cos()).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))

    for got, want in zip(second(inputs, cpu), second(exactly(inputs), "torch"), strict=True):
        close(got, want)


@each
def test_a_gradient_of_one_input_ignores_how_another_was_computed_from_it(cpu: str, name: str) -> None:
    """The second derivative runs on through an input that depends on another."""
    inputs, run = CASES[name]

    def second(x: list[Tensor], backend: str) -> Tensor:
        first = x[0].clone().requires_grad_()
        rest = [first * 0.5 if y.shape == first.shape else y for y in x[1:]]
        (g,) = torch.autograd.grad(run(first, *rest, backend=backend).square().sum(), first, create_graph=True)
        return torch.autograd.grad(g.square().sum(), first)[0]

    close(second(inputs, cpu), second(exactly(inputs), "torch"))


@each
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_forward_mode(cpu: str, name: str, backend: str) -> None:
    inputs, run = CASES[name]

    def derivative(inputs: list[Tensor], backend: str) -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs]
            tangent: Tensor = forward_ad.unpack_dual(run(*duals, backend=backend)).tangent
        return tangent

    close(derivative(inputs, backend), derivative(exactly(inputs), "torch"))


@each
def test_transforms(cpu: str, name: str) -> None:
    inputs, run = CASES[name]
    rest = inputs[1:]

    def loss(x: Tensor, *rest: Tensor, backend: str = cpu) -> Tensor:
        return run(x, *rest, backend=backend).square().sum()  # type: ignore[no-any-return]

    x, *others = exactly(inputs)
    exact = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(exact, *others, backend="torch"), exact)
    close(torch.func.grad(loss)(inputs[0], *rest), want)
    _, tangent = torch.func.jvp(lambda x: loss(x, *rest), (inputs[0],), (torch.ones_like(inputs[0]),))
    assert float(tangent) == pytest.approx(float(want.sum()), rel=1e-3)
    two = torch.stack([inputs[0], 2 * inputs[0]])
    got = torch.func.vmap(lambda x: run(x, *rest, backend=cpu))(two)
    close(got[1], run(2 * x, *others, backend="torch"))


def steps() -> dict[str, Callable[[Tensor], Tensor]]:
    x = normal(2, 3, 4)
    return {
        "taylor_linear_attention_step": lambda y: kernels.taylor_linear_attention_step(
            y, x, x, TaylorState(torch.ones(2, 3, 15, 4), torch.ones(2, 3, 15))
        ),
        "sliding_window_attention_step": lambda y: kernels.sliding_window_attention_step(
            y, x, x, WindowState(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4), torch.ones(2, dtype=torch.int64))
        ),
        "selective_scan_step": lambda y: kernels.selective_scan_step(
            y[:, 0], x[:, 1], -torch.ones(4, 2), torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2, 4, 2)
        ),
        "ssd_step": lambda y: kernels.ssd_step(
            y, x[..., 0], -torch.ones(3), torch.ones(2, 1, 2), torch.ones(2, 1, 2), torch.zeros(2, 3, 4, 2)
        ),
        "short_conv_step": lambda y: kernels.short_conv_step(
            y.flatten(1), torch.ones(12, 3), None, torch.zeros(2, 2, 12)
        ),
    }


@pytest.mark.parametrize("name", steps())
def test_a_decode_step_refuses_derivatives(cpu: str, name: str) -> None:
    step, x = steps()[name], normal(2, 3, 4)
    step(x)
    with pytest.raises(UserError, match=r"requires a gradient.*no_grad"):
        step(x.clone().requires_grad_())
    with torch.no_grad():
        step(x.clone().requires_grad_())
    with forward_ad.dual_level(), pytest.raises(UserError, match="forward-mode"):
        step(forward_ad.make_dual(x, x))
    with pytest.raises(UserError, match="decode step"):
        torch.func.grad(lambda x: step(x).sum())(x)


def test_operators_called_directly_raise(cpu: str) -> None:
    ops, x = torch.ops.jrt_eval, normal(2, 5, 3, 4).requires_grad_()
    y, *_ = ops.sliding_window_attention(x, x, x, 2, None, None, None, None)
    with pytest.raises(UserError, match="sliding_window_attention has no gradient"):
        y.sum().backward()
    got = ops.causal_dot_product_backward(x, x, x, None, x, torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match="causal_dot_product_backward has no gradient"):
        got[0].sum().backward()
    with pytest.raises(UserError, match="taylor_linear_attention_step has no gradient"):
        ops.taylor_linear_attention_step(x[:, 0], x[:, 0], x[:, 0], torch.ones(2, 3, 15, 4), torch.ones(2, 3, 15), None)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), x.detach())
        with pytest.raises(UserError, match="no forward-mode derivative"):
            ops.causal_dot_product(dual, dual, dual, None)


def test_decay_learns(cpu: str) -> None:
    """The forward pass is compiled, the gradient the reference's."""
    inputs, run = CASES["with_decay"]
    mine, exact = ([x.clone().requires_grad_() for x in xs] for xs in (inputs, exactly(inputs)))
    got = torch.autograd.grad(run(*mine, backend=cpu).square().sum(), mine)
    for one, other in zip(got, torch.autograd.grad(run(*exact, backend="torch").square().sum(), exact), strict=True):
        close(one, other)
