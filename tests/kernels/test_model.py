"""The kernels inside whole models: `torch.compile` takes a model as one graph, and backend="torch" is the reference path."""

from __future__ import annotations

from typing import Any

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval.bench.configs import released_config
from jrt_eval.kernels import dispatch
from jrt_eval.models.recurrent.model import JRTModel, ModelState, from_config

SHAPE: dict[str, Any] = {
    **released_config("jrt-360m"),
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 48,
    "vocab_size": 64,
    "n_layer": 3,
    "alt_mixer_layers": [1],
    "alt_mixer_2": {"_target_": "SlidingAttention", "num_heads": 4, "window_size": 8},
    "alt_mixer_2_layers": [2],
}
FAMILIES = {
    "jrt": {"_target_": "PrefixLinearAttention", "num_heads": 4, "feature_dim": 8, "enc_length": 20},
    "based": {"_target_": "LinearAttention", "num_heads": 4, "feature_dim": 8},
}


def model(family: str, backend: str) -> JRTModel:
    return from_config({**SHAPE, "alt_mixer": FAMILIES[family]}, seed=0, backend=backend).eval()


def tokens(batch: int = 2, length: int = 70) -> Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_is_one_graph(cpu: str, family: str) -> None:
    network, ids = model(family, "auto"), tokens()

    def run(ids: Tensor) -> tuple[Tensor, list[Any]]:
        out = network(ids)
        assert out.state is not None
        return out.logits, [tuple(s) if isinstance(s, tuple) else s for s in out.state.layers]

    with torch.no_grad():
        want, want_states = run(ids)
        got, got_states = torch.compile(run, fullgraph=True, backend="aot_eager")(ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_states, want_states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decode_step_is_one_graph(cpu: str, family: str) -> None:
    network, ids = model(family, "auto"), tokens()
    step = torch.compile(network.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        _, eager = network.hidden(ids)
        _, compiled = network.hidden(ids)
        for t in range(3):
            torch.testing.assert_close(step(ids[:, t], compiled), network.step(ids[:, t], eager), rtol=1e-5, atol=1e-5)
    assert isinstance(compiled, ModelState)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_one_graph(cpu: str, family: str) -> None:
    network, ids = model(family, "auto").train(), tokens()

    def loss(ids: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(network(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())

    parameters = list(network.parameters())
    want = torch.autograd.grad(loss(ids), parameters, allow_unused=True)
    got = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(ids), parameters, allow_unused=True
    )
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_torch_backend_uses_no_kernel_and_agrees(cpu: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights in float64, without kernels, give the expected result of both backends."""
    fast, plain = model(family, "auto"), model(family, "torch")
    ids = tokens()
    with torch.no_grad():
        logits = fast(ids).logits
        steps, state = [], fast.hidden(ids)[1]
        steps = [fast.step(ids[:, t], state) for t in range(4)]
        find = dispatch.implementation

        def refuse(operator: str, backend: str) -> dispatch.Function:
            assert backend != "cpu", f"{operator}: the compiled kernel was called"
            return find(operator, backend)

        monkeypatch.setattr(dispatch, "implementation", refuse)
        dispatch._chosen.clear()
        try:
            with pytest.raises(AssertionError, match="compiled kernel was called"):
                fast(ids)
            reference = plain(ids).logits
            state = plain.hidden(ids)[1]
            reference_steps = [plain.step(ids[:, t], state) for t in range(4)]
            exact = plain.double()(ids).logits
        finally:
            dispatch._chosen.clear()
    assert oracle.error(logits, exact) < 1e-5
    assert oracle.error(reference, exact) < 1e-5
    for mine, theirs in zip(steps, reference_steps, strict=True):
        assert oracle.error(mine, theirs) < 1e-5
