"""Our kernels in transformers' classes: when they are used, and that nothing else notices."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jrt_eval.errors import UserError
from jrt_eval.models import kernel_functions, load_model, transformers_kernels
from jrt_eval.models.batching import Batching
from jrt_eval.models.transformers import TransformersModel

PADDED = Batching("padded", "padded", "given")
IDS = torch.tensor([[3, 14, 15, 9, 26, 6, 5], [27, 7, 18, 8, 28, 8, 10]])


@pytest.fixture
def mamba2() -> Any:
    """A tiny Mamba-2 of transformers; skipped where this transformers has no function to replace."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
    )
    model = Mamba2ForCausalLM(config).eval()
    transformers_kernels.provide(model)
    if not hasattr(getattr(_module(model), "mamba2_chunk_scan", None), "replaces"):
        pytest.skip("this transformers' Mamba-2 looks up no function")
    return model


def _module(model: Any) -> Any:
    return sys.modules[type(model).__module__]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operators that run."""
    names: list[str] = []
    for name in ("short_conv", "ssd", "ssd_step"):
        operator = getattr(kernel_functions.kernels, name)

        def counted(*args: Any, _operator: Any = operator, _name: str = name, **kwargs: Any) -> Any:
            names.append(_name)
            return _operator(*args, **kwargs)

        monkeypatch.setattr(kernel_functions.kernels, name, counted)
    return names


@torch.no_grad()
def test_only_the_model_that_asks_for_them_uses_our_kernels(mamba2: Any, calls: list[str]) -> None:
    plain = TransformersModel(mamba2, batching=PADDED, backend="torch")
    ours = TransformersModel(mamba2, batching=PADDED)
    expected = plain(IDS).logits
    assert torch.equal(mamba2(IDS).logits, expected)
    assert torch.equal(mamba2.generate(IDS, max_new_tokens=2), plain.generate(IDS, 2))
    assert calls == []
    torch.testing.assert_close(ours(IDS).logits, expected)
    assert calls == ["short_conv", "ssd"] * 2
    ours.generate(IDS, 2)
    assert "ssd_step" in calls
    calls.clear()
    assert torch.equal(mamba2(IDS).logits, expected)
    assert calls == []


def test_gradients_are_those_of_plain_transformers(mamba2: Any, calls: list[str]) -> None:
    gradients = []
    for backend in ("torch", "auto"):
        mamba2.zero_grad()
        TransformersModel(mamba2, batching=PADDED, backend=backend)(IDS).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in mamba2.parameters()])
    assert calls == []
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_autocast_stays_out_of_the_recurrence(mamba2: Any, calls: list[str]) -> None:
    model = TransformersModel(mamba2, batching=PADDED)
    exact = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(IDS).logits
    assert calls == ["short_conv", "ssd"] * 4
    assert 0 < float((mixed.float() - exact).abs().max()) < 0.1 * float(exact.std())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_float32_than_plain_transformers(mamba2: Any, dtype: torch.dtype) -> None:
    exact = TransformersModel(mamba2, batching=PADDED)(IDS).logits
    mamba2.to(dtype)
    errors = []
    for backend in ("torch", "auto"):
        out = TransformersModel(mamba2, batching=PADDED, backend=backend).generate(
            IDS, 3, output_logits=True, return_dict_in_generate=True
        )
        assert torch.isfinite(torch.stack(out.logits)).all()
        errors.append(float((out.logits[0].float() - exact[:, -1]).abs().max()))
    assert errors[1] <= 2 * errors[0]


@torch.no_grad()
def test_calls_that_our_operators_do_not_compute_stay_with_transformers(mamba2: Any, calls: list[str]) -> None:
    module = _module(mamba2)
    x, weight = torch.randn(2, 6, 5), torch.randn(6, 4)
    state, new = torch.randn(2, 6, 4), torch.randn(2, 6, 1)
    half = state.clone()
    with transformers_kernels.serving("auto"):
        gelu = module.causal_conv1d_fn(x, weight, activation="gelu")
        stepped = module.causal_conv1d_update(new, half, weight, activation="gelu")
        with pytest.raises(ValueError, match="packed"):
            module.causal_conv1d_fn(x, weight, seq_idx=torch.zeros(2, 5, dtype=torch.int32))
    assert calls == []
    torch.testing.assert_close(gelu, module.causal_conv1d_fn(x, weight, activation="gelu"))
    torch.testing.assert_close(stepped, module.causal_conv1d_update(new, state, weight, activation="gelu"))
    torch.testing.assert_close(half, state)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("held", [4, 7])
def test_a_step_of_the_convolution(mamba2: Any, bias: bool, activation: str | None, held: int) -> None:
    """With a state of the width or longer; the state is shifted in place."""
    update = _module(mamba2).causal_conv1d_update
    weight, b = torch.randn(6, 4), torch.randn(6) if bias else None
    state, new = torch.randn(2, 6, held), torch.randn(2, 6, 1)
    expected_state = state.clone()
    expected = update(new, expected_state, weight, b, activation)
    with transformers_kernels.serving("auto"):
        y = update(new, state, weight, b, activation)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)


@torch.no_grad()
def test_steps_whose_parameters_differ_inside_a_head_stay_with_transformers(mamba2: Any, calls: list[str]) -> None:
    update = _module(mamba2).mamba2_selective_state_update
    torch.manual_seed(0)
    x, dt = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    a, b, c = -torch.rand(4, 8, 3), torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    state = torch.randn(2, 4, 8, 3)
    expected_state = state.clone()
    expected = update(expected_state, x, dt, a, b, c, dt_softplus=True)
    with transformers_kernels.serving("auto"):
        y = update(state, x, dt, a, b, c, dt_softplus=True)
    assert calls == []
    assert torch.equal(y, expected) and torch.equal(state, expected_state)


def test_a_failing_call_leaves_no_kernels_behind(mamba2: Any, calls: list[str]) -> None:
    model = TransformersModel(mamba2, batching=PADDED)
    with torch.no_grad():
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]))
        mamba2(IDS)
    assert calls == []


def test_functions_of_other_parameters_are_left_alone() -> None:
    def same(hidden_states: Any, weight: Any, bias: Any = None, activation: Any = None, **kwargs: Any) -> None: ...
    def fewer(hidden_states: Any, weight: Any, bias: Any = None) -> None: ...
    def more(hidden_states: Any, weight: Any, bias: Any = None, activation: Any = None, state: Any = None) -> None: ...
    def renamed(x: Any, weight: Any, bias: Any = None, activation: Any = None) -> None: ...
    def swapped(hidden_states: Any, bias: Any, weight: Any = None, activation: Any = None) -> None: ...

    ours = kernel_functions.FUNCTIONS["causal_conv1d_fn"]
    assert [transformers_kernels._fits(f, ours) for f in (same, fewer, more, renamed, swapped)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_packages_function_is_left_alone_and_named(mamba2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(*args: Any) -> None: ...

    fast.__module__ = "causal_conv1d.interface"
    module = _module(mamba2)
    original = module.causal_conv1d_fn.replaces

    def wrapper(implementation: Any) -> Any:
        def call(*args: Any) -> Any:
            return implementation(*args)

        call.__wrapped__ = original.__wrapped__  # type: ignore[attr-defined]
        return call

    found = wrapper(fast)
    monkeypatch.setattr(module, "causal_conv1d_fn", found)
    transformers_kernels.provide(mamba2)
    assert module.causal_conv1d_fn is found
    assert transformers_kernels.report(mamba2, "auto")["causal_conv1d_fn"] == "causal_conv1d"


def test_the_report_names_kernels_backends_and_pytorch(mamba2: Any, tmp_path: Path) -> None:
    mamba2.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mamba2"
    reports = {
        backend: load_model(tmp_path, device="cpu", arch="transformers", backend=backend).kernels
        for backend in ("auto", "torch")
    }
    assert set(reports["torch"].values()) == {"PyTorch"}
    assert reports["auto"].keys() == reports["torch"].keys()
    assert reports["auto"]["mamba2_chunk_scan"].startswith("ssd (")
    with pytest.raises(UserError, match="backend"):
        load_model(tmp_path, device="cpu", arch="transformers", backend="triton")
