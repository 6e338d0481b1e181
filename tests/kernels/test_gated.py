"""`gated_linear_attention` and `gated_delta_rule`: every backend against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.kernels import (
    gated_delta_rule,
    gated_delta_rule_step,
    gated_linear_attention,
    gated_linear_attention_step,
)

GATES = ("none", "head", "channel")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# batch, length, key heads, heads, key dim, head dim
SHAPES = [
    (2, 0, 2, 2, 4, 8),
    (1, 1, 1, 1, 3, 5),
    (2, 2, 1, 3, 16, 33),
    (1, 63, 2, 2, 17, 32),
    (2, 64, 1, 2, 32, 64),
    (1, 65, 2, 4, 24, 40),
    (3, 130, 1, 1, 128, 16),
    (1, 300, 2, 2, 8, 100),
]

Inputs = dict[str, Any]


def inputs(
    shape: tuple[int, ...], gate: str, dtype: torch.dtype, *, seed: int = 0, strided: bool = False, delta: bool = False
) -> Inputs:
    """Random arguments of an operator; `strided`: as views into a larger projection, with channels apart."""
    batch, length, key_heads, heads, key_dim, head_dim = shape
    make = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        if not strided:
            return torch.randn(*size, generator=make)
        return torch.randn(*size[:-1], 2 * size[-1] + 3, generator=make)[..., 3::2]

    q, k = (F.normalize(normal(batch, length, key_heads, key_dim), dim=-1) for _ in range(2))
    v = normal(batch, length, heads, head_dim)
    if strided:
        q, k = (torch.stack([x, x], -1)[..., 0] for x in (q, k))
    size = (batch, length, heads) if gate == "head" else (batch, length, heads, key_dim)
    g = None if gate == "none" else -torch.rand(size, generator=make) * (3 if gate == "head" else 8)
    state = torch.randn(batch, heads, key_dim, head_dim, generator=make)
    found: Inputs = {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype), "g": g, "state": state}
    if delta:
        found["beta"] = torch.rand(batch, length, heads, generator=make) * 2
    return found


def double(given: Inputs) -> Inputs:
    return {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}


def on(device: str, given: Inputs) -> Inputs:
    return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in given.items()}


OPERATORS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (gated_linear_attention, gated_linear_attention_step),
    (gated_delta_rule, gated_delta_rule_step),
]


@pytest.fixture
def place(where: tuple[str, str]) -> tuple[str, str]:
    """A backend and its device; `auto` on a GPU, which has no compiled kernel for these operators."""
    backend, device = where
    return ("auto" if backend == "cuda" else backend), device


each_operator = pytest.mark.parametrize(("prefill", "step"), OPERATORS, ids=["linear", "delta"])


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.double().cpu(), want, rtol=0, atol=TOLERANCE[dtype] * scale)


@each_operator
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in SHAPES]
    + [(shape, dtype) for shape in SHAPES[3:5] for dtype in (torch.bfloat16, torch.float16)],
    ids=str,
)
def test_prefill(
    place: tuple[str, str], prefill: Any, step: Any, shape: tuple[int, ...], gate: str, dtype: torch.dtype
) -> None:
    backend, device = place
    given = inputs(shape, gate, dtype, delta=prefill is gated_delta_rule, strided=shape[1] % 2 == 1)
    y, final = prefill(**on(device, given), backend=backend)
    want, want_final = prefill(**double(given), backend="torch")
    assert y.dtype is dtype and y.shape == given["v"].shape and final.dtype is torch.float32
    close(y, want, dtype)
    close(final, want_final, dtype)


@each_operator
@pytest.mark.parametrize("gate", GATES)
def test_splits_and_steps_agree(place: tuple[str, str], prefill: Any, step: Any, gate: str) -> None:
    backend, device = place
    given = on(device, inputs((2, 70, 1, 2, 20, 36), gate, torch.float32, delta=prefill is gated_delta_rule))
    whole, final = prefill(**given, backend=backend)
    start = given.pop("state")

    def part(a: int, b: int) -> Inputs:
        return {key: None if x is None else x[:, a:b] for key, x in given.items()}

    state, parts = start, []
    for a, b in ((0, 1), (1, 33), (33, 60)):
        y, state = prefill(**part(a, b), state=state, backend=backend)
        parts.append(y)
    state = state.clone()
    for t in range(60, 70):
        token = {key: None if x is None else x[:, 0] for key, x in part(t, t + 1).items()}
        parts.append(step(**token, state=state, backend=backend)[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-5)


@each_operator
@pytest.mark.parametrize("gate", GATES)
def test_padding_contributes_nothing(place: tuple[str, str], prefill: Any, step: Any, gate: str) -> None:
    backend, device = place
    given = on(device, inputs((3, 40, 2, 2, 8, 16), gate, torch.float32, delta=prefill is gated_delta_rule))
    lengths = torch.tensor([40, 17, 0], device=device)
    y, final = prefill(**given, lengths=lengths, backend=backend)
    for row, n in enumerate(lengths.tolist()):
        alone = {key: None if x is None else x[row : row + 1] for key, x in given.items()}
        state = alone.pop("state")
        cut = {key: None if x is None else x[:, :n] for key, x in alone.items()}
        y_alone, final_alone = prefill(**cut, state=state, backend=backend)
        torch.testing.assert_close(y[row : row + 1, :n], y_alone, rtol=0, atol=2e-6)
        torch.testing.assert_close(final[row : row + 1], final_alone, rtol=0, atol=2e-6)
        assert not y[row, n:].any()


@each_operator
def test_runs_are_bit_identical(place: tuple[str, str], prefill: Any, step: Any) -> None:
    backend, device = place
    given = on(device, inputs((2, 200, 2, 2, 32, 64), "channel", torch.float32, delta=prefill is gated_delta_rule))
    first, final = prefill(**given, backend=backend)
    again, final_again = prefill(**given, backend=backend)
    assert torch.equal(first, again) and torch.equal(final, final_again)


@each_operator
@pytest.mark.parametrize("name", ["q", "k", "v", "g"])
def test_a_nan_reaches_its_own_and_later_outputs_only(
    place: tuple[str, str], prefill: Any, step: Any, name: str
) -> None:
    backend, device = place
    if backend in ("parallel", "auto"):
        pytest.skip("a chunk's matrix products multiply later tokens by 0, and 0 times NaN is NaN")
    given = inputs((1, 20, 1, 1, 4, 40), "channel", torch.float32, delta=prefill is gated_delta_rule)
    given[name][0, 7] = torch.nan
    y, final = prefill(**on(device, given), backend=backend)
    assert not y[0, :7].isnan().any() and y[0, 7].isnan().all()
    if name != "q":
        assert final.isnan().any() and y[0, 8:].isnan().any()


@each_operator
def test_large_values_and_gates_that_erase(place: tuple[str, str], prefill: Any, step: Any) -> None:
    backend, device = place
    given = inputs((1, 50, 1, 1, 4, 8), "head", torch.float32, delta=prefill is gated_delta_rule)
    given["v"] = given["v"] * 1e6
    given["g"][0, 20] = -torch.inf
    y, final = prefill(**on(device, given), backend=backend)
    want, want_final = prefill(**double(given), backend="torch")
    close(y, want, torch.float32)
    close(final, want_final, torch.float32)


@each_operator
def test_gradients(place: tuple[str, str], prefill: Any, step: Any) -> None:
    backend, device = place
    given = inputs((1, 20, 1, 2, 5, 6), "channel", torch.float32, delta=prefill is gated_delta_rule)

    def gradients(given: Inputs, backend: str) -> dict[str, Tensor]:
        leaves = {key: x.detach().clone().requires_grad_() for key, x in given.items()}
        y, final = prefill(**leaves, backend=backend)
        (y.double().square().sum() + final.double().square().sum()).backward()
        return {key: x.grad for key, x in leaves.items()}

    got, want = gradients(on(device, given), backend), gradients(double(given), "torch")
    for key, grad in want.items():
        assert grad.any(), key
        close(got[key], grad, torch.float32)


def test_bad_arguments_get_one_line() -> None:
    q = torch.zeros(1, 4, 2, 3)
    v = torch.zeros(1, 4, 3, 5)
    with pytest.raises(UserError, match="v's heads must be a multiple of q's"):
        gated_linear_attention(q, q, v)
    v = torch.zeros(1, 4, 4, 5)
    with pytest.raises(UserError, match=r"g has shape \(1, 4, 2\), expected \(1, 4, 4\) or"):
        gated_linear_attention(q, q, v, torch.zeros(1, 4, 2))
    with pytest.raises(UserError, match="beta has shape"):
        gated_delta_rule(q, q, v, None, torch.zeros(1, 4, 2))
    with pytest.raises(UserError, match="lengths from 9 to 9, expected 0 to 4"):
        gated_linear_attention(q, q, v, lengths=torch.tensor([9]))
    state = torch.zeros(1, 4, 3, 5, dtype=torch.int32)
    with pytest.raises(UserError, match=r"state is torch\.int32"):
        gated_linear_attention_step(q[:, 0], q[:, 0], v[:, 0], None, state)
