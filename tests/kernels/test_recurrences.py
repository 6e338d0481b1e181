"""selective_scan and ssd against their formulas, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import recurrence_oracle as oracle
import torch
from recurrence_oracle import Inputs, error
from serving import serving
from torch import Tensor

from jrt_eval import kernels
from jrt_eval.errors import UserError

Where = tuple[str, str]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}

# operator -> inputs of (batch, length) tokens: as models have them, odd widths, groups, and no optional argument
SHAPES: dict[str, list[Any]] = {
    "selective_scan": [
        pytest.param(lambda b, t: oracle.scan_inputs(b, t, 64, 16), id="64x16"),
        pytest.param(lambda b, t: oracle.scan_inputs(b, t, 33, 13), id="33x13"),
        pytest.param(lambda b, t: oracle.scan_inputs(b, t, 150, 5, 3), id="150x5-groups"),
        pytest.param(lambda b, t: oracle.scan_inputs(b, t, 7, 1, plain=True), id="7x1-plain"),
    ],
    "ssd": [
        pytest.param(lambda b, t: oracle.ssd_inputs(b, t, 2, 64, 128), id="2x64x128"),
        pytest.param(lambda b, t: oracle.ssd_inputs(b, t, 3, 33, 13, per_dim=True), id="3x33x13"),
        pytest.param(lambda b, t: oracle.ssd_inputs(b, t, 6, 9, 20, 3), id="6x9x20-groups"),
        pytest.param(lambda b, t: oracle.ssd_inputs(b, t, 1, 5, 3, plain=True), id="1x5x3-plain"),
    ],
}
CASES = [pytest.param(name, case.values[0], id=f"{name}-{case.id}") for name, cases in SHAPES.items() for case in cases]
ONE_EACH = [pytest.param(name, cases[1].values[0], id=name) for name, cases in SHAPES.items()]


def call(name: str, inputs: Inputs, backend: str, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return getattr(kernels, name)(**inputs, lengths=lengths, backend=serving(backend, name))  # type: ignore[no-any-return]


def step(name: str, inputs: Inputs, backend: str) -> Tensor:
    return getattr(kernels, f"{name}_step")(**inputs, backend=serving(backend, f"{name}_step"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("name", "make"), CASES)
def test_against_the_formula(where: Where, name: str, make: Any, length: int, dtype: torch.dtype) -> None:
    backend, device = where
    inputs = oracle.cast(make(2, length), dtype)
    want_y, want_state = oracle.recurrence(inputs)
    y, state = call(name, oracle.cast(inputs, dtype, device), backend)
    assert y.dtype == dtype and state.dtype == torch.float32
    assert error(y, want_y) < TOLERANCE[dtype]
    rounded = name == "ssd" and device == "cuda" and dtype != torch.float32  # products on tensor cores
    assert error(state, want_state) < (4e-3 if rounded else 1e-5)


@pytest.mark.parametrize("length", [1000, 4097])
@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_long_sequence(where: Where, name: str, make: Any, length: int) -> None:
    backend, device = where
    inputs = make(1, length)
    want_y, want_state = oracle.recurrence(inputs)
    y, state = call(name, oracle.cast(inputs, torch.float32, device), backend)
    assert error(y, want_y) < 1e-5
    assert error(state, want_state) < 1e-5


@pytest.mark.parametrize(("name", "make"), CASES)
def test_rows_of_different_lengths(where: Where, name: str, make: Any) -> None:
    """Padding of any value contributes nothing, and its outputs are 0."""
    backend, device = where
    lengths = torch.tensor([130, 0, 1, 77])
    inputs = make(4, 130)
    want_y, want_state = oracle.recurrence(inputs, lengths)
    for row, count in enumerate(lengths.tolist()):
        for each in oracle.PER_TOKEN:
            if inputs[each] is not None:
                inputs[each][row, count:] = float("nan")
    y, state = call(name, oracle.cast(inputs, torch.float32, device), backend, lengths.to(device))
    assert error(y, want_y) < 1e-5
    assert error(state, want_state) < 1e-5
    assert all(bool((y[row, count:] == 0).all()) for row, count in enumerate(lengths.tolist()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "make"), CASES)
def test_splits_and_steps_agree(where: Where, name: str, make: Any, dtype: torch.dtype) -> None:
    backend, device = where
    inputs = oracle.cast(make(2, 90), dtype, device)
    whole, last = call(name, inputs, backend)
    parts, state = [], inputs["state"]
    for start, stop in ((0, 1), (1, 30), (30, 30), (30, 85)):
        y, state = call(name, oracle.tokens(inputs, start, stop) | {"state": state}, backend)
        parts.append(y)
    for t in range(85, 90):
        parts.append(step(name, oracle.token(inputs, t) | {"state": state}, backend)[:, None])
    tolerance = TOLERANCE[dtype]
    assert error(torch.cat(parts, 1).cpu(), whole.cpu()) < tolerance
    assert error(state.cpu(), last.cpu()) < (1e-2 if device == "cuda" and dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_strides(where: Where, name: str, make: Any) -> None:
    backend, device = where
    inputs = oracle.cast(make(2, 70), torch.float32, device)
    want = call(name, inputs, backend)
    for number in range(3):
        views = dict(inputs)
        for each in oracle.PER_TOKEN:
            x = inputs[each]
            if number == 0:  # parts of one wide projection
                views[each] = torch.cat([x, x], -1)[..., : x.shape[-1]]
            elif number == 1:  # channels, or states, far apart
                views[each] = x.unsqueeze(-1).expand(*x.shape, 2).contiguous()[..., 0]
            else:  # tokens next to each other
                views[each] = x.transpose(0, 1).contiguous().transpose(0, 1)
        state, first = inputs["state"].clone(), inputs["state"].clone()
        y = step(name, oracle.token(views, 0) | {"state": state}, backend)
        pairs = [
            *zip(call(name, views, backend), want, strict=True),
            (y, step(name, oracle.token(inputs, 0) | {"state": first}, backend)),
            (state, first),
        ]
        assert all(error(got.cpu(), expected.cpu()) < 1e-6 for got, expected in pairs)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_the_same_bits_every_time(where: Where, name: str, make: Any) -> None:
    """From run to run, for any number of threads, and for a row alone as in a batch."""
    backend, device = where
    inputs = oracle.cast(make(3, 140), torch.float32, device)
    want = call(name, inputs, backend)
    if backend not in ("cpu", "cuda", "triton"):
        pytest.skip("PyTorch's own sums may depend on the number of threads")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(call(name, inputs, backend), want, strict=True))
    finally:
        torch.set_num_threads(threads)
    batched = (*oracle.PER_TOKEN, "state")
    row = {k: v[1:2] if k in batched and v is not None else v for k, v in inputs.items()}
    assert all(torch.equal(a, b[1:2]) for a, b in zip(call(name, row, backend), want, strict=True))


@pytest.mark.parametrize("which", ["x", "dt", "b", "c", "z"])
@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_nan_is_visible_and_causal(where: Where, name: str, make: Any, which: str) -> None:
    backend, device = where
    inputs = make(2, 100)
    inputs[which][0, 70] = float("nan")
    y, state = call(name, oracle.cast(inputs, torch.float32, device), backend)
    assert y[0, 70].isnan().all()
    if serving(backend, name) != "triton" or which != "x":  # tensor cores multiply later tokens by 0, which leaves NaN
        assert y[0, :70].isfinite().all()
    assert y[1].isfinite().all() and state[1].isfinite().all()
    reaches_state = which in ("x", "dt", "b")
    assert bool(state[0].isnan().all()) == reaches_state
    held = oracle.cast(inputs, torch.float32, device)
    fresh = held["state"].clone()
    out = step(name, oracle.token(held, 70) | {"state": fresh}, backend)
    assert out[0].isnan().all() and out[1].isfinite().all()
    assert bool(fresh[0].isnan().any()) == reaches_state


@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_large_time_steps(where: Where, name: str, make: Any) -> None:
    """States that decay to nothing within a token, and time steps that the softplus passes as they are."""
    backend, device = where
    inputs = make(1, 70) | {"softplus": True}
    inputs["dt"] = inputs["dt"] * 100
    if "dt_limit" in inputs:
        inputs["dt_limit"] = (0.0, 1e4)
    want_y, want_state = oracle.recurrence(inputs)
    y, state = call(name, oracle.cast(inputs, torch.float32, device), backend)
    assert error(y, want_y) < 2e-5
    assert error(state, want_state) < 2e-5


@pytest.mark.parametrize(("name", "make"), CASES)
def test_gradients(where: Where, name: str, make: Any) -> None:
    """Gradients of every backend are those of autograd through the reference in float64."""
    backend, device = where
    inputs = make(2, 70)
    names = [k for k, v in inputs.items() if isinstance(v, Tensor)]

    def run(dtype: torch.dtype, at: str, backend: str) -> list[Tensor]:
        given = {k: v.to(at, dtype).requires_grad_() if k in names else v for k, v in inputs.items()}
        y, state = call(name, given, backend)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).cos().view(y.shape).to(at, dtype)
        total = (y * weight).sum() + (state.sum() if state.requires_grad else 0)
        return list(torch.autograd.grad(total, [given[k] for k in names]))

    if device == "cuda" and inputs["state"] is None:
        pytest.skip("no gradient flows through the final state: tested in the interpreter")
    for key, got, want in zip(
        names, run(torch.float32, device, backend), run(torch.float64, "cpu", "torch"), strict=True
    ):
        assert error(got, want) < 1e-4, key


@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_gradients_of_the_reference(name: str, make: Any) -> None:
    inputs = make(1, 9)
    names = [k for k, v in inputs.items() if isinstance(v, Tensor)]
    leaves = [inputs[k].double().requires_grad_() for k in names]

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return call(name, inputs | dict(zip(names, values, strict=True)), "torch")

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_opcheck(name: str, make: Any) -> None:
    """What PyTorch's operator library needs to trace the operators."""
    if kernels.dispatch.BACKENDS["cpu"].missing is not None:
        pytest.skip("no compiled kernels")
    inputs = make(2, 5)
    limits = inputs.get("dt_limit", ())
    kernels.dispatch.implementation(name, "cpu")
    optional = [inputs[k] for k in ("x", "dt", "a", "b", "c", "d", "z", "dt_bias", "state")]
    prefill, one = getattr(torch.ops.jrt_eval, name), getattr(torch.ops.jrt_eval, f"{name}_step")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        prefill.default, (*optional, torch.tensor([5, 2]), inputs["softplus"], *limits), test_utils=checks
    )
    now = [v[:, 0] if k in oracle.PER_TOKEN and v is not None else v for k, v in zip(("x", "dt", "a", "b", "c", "d", "z"), optional, strict=False)]  # fmt: skip
    _, state = call(name, inputs, "cpu")
    torch.library.opcheck(one.default, (*now, inputs["dt_bias"], state, inputs["softplus"], *limits), test_utils=checks)


@pytest.mark.parametrize(("name", "make"), ONE_EACH)
def test_arguments_that_are_refused(name: str, make: Any) -> None:
    inputs = make(2, 5)

    def refuse(change: Inputs, match: str) -> None:
        with pytest.raises(UserError, match=match) as raised:
            call(name, inputs | change, "auto")
        assert "\n" not in str(raised.value)

    refuse({"x": inputs["x"][0]}, f"{name}: expected x of shape")
    refuse({"dt": inputs["dt"][:, :3]}, f"{name}: dt has shape")
    refuse({"b": inputs["b"][..., :-1]}, f"{name}: ")
    refuse({"c": inputs["c"].to(torch.bfloat16)}, f"{name}: tensors of different dtypes")
    refuse({"state": inputs["state"][:1]}, f"{name}: state has shape")
    refuse({"x": inputs["x"].long()}, f"{name}: torch.int64 is not supported")
    with pytest.raises(UserError, match="lengths from 0 to 6"):
        call(name, inputs, "auto", torch.tensor([0, 6]))
    now = oracle.token(inputs, 0)
    with pytest.raises(UserError, match="overlaps state in memory"):
        step(name, now | {"state": inputs["state"], "a": inputs["state"].flatten()[: inputs["a"].numel()].view_as(inputs["a"])}, "auto")  # fmt: skip
    with pytest.raises(UserError, match=r"state is torch\.float64, expected torch\.float32"):
        step(name, now | {"state": inputs["state"].double()}, "auto")


def test_autograd_notices_states_written_in_place(where: Where) -> None:
    backend, device = where
    for name, cases in SHAPES.items():
        inputs = oracle.cast(cases[1].values[0](2, 1), torch.float32, device)
        state = inputs["state"].clone()
        graph = (torch.ones((), device=device, requires_grad=True) * state).sum()
        step(name, oracle.token(inputs, 0) | {"state": state}, backend)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            graph.backward()
