"""The forms of the mixers that training uses: equal to the reference, and with the right gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import MODELS

from jrt_eval.kernels import selective_scan
from jrt_eval.kernels.sliding_window_attention import parallel as blocks
from jrt_eval.kernels.sliding_window_attention import reference as windows
from jrt_eval.kernels.taylor_linear_attention import parallel, reference
from jrt_eval.models import from_config
from jrt_eval.models.recurrent.mixers import Call
from jrt_eval.training.mamba import MambaLM


def _draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def _compare(one: Any, two: Any, inputs: list[Tensor]) -> None:
    """Values and gradients of two functions of `inputs`."""
    results = []
    for function in (one, two):
        y = function(*inputs)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append([y, *torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("prefix", [0, 7])
def test_linear_attention_in_chunks(length: int, prefix: int) -> None:
    q, k = _draw(2, length, 3, 4, seed=0), _draw(2, length, 3, 4, seed=1)
    v = _draw(2, length, 3, 5, seed=2)
    mask = torch.ones(2, length)
    mask[1, length // 2 :] = 0

    def run(kernels: Any) -> Any:
        def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            state = kernels.encode_prefix(k[:, :prefix], v[:, :prefix], mask[:, :prefix]) if prefix else None
            y, final = kernels.taylor_linear_attention(q, k, v, state, mask, None)
            return torch.cat([y.flatten(), final.kv.flatten(), final.k.flatten()])

        return function

    _compare(run(reference), run(parallel), [q, k, v])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("window", [1, 5, 16, 33])
def test_sliding_window_in_blocks(length: int, window: int) -> None:
    inputs = [_draw(2, length, 2, 4, seed=i) for i in range(3)]

    def run(kernels: Any) -> Any:
        return lambda q, k, v: kernels.sliding_window_attention(q, k, v, window, None, None)[0]

    _compare(run(windows), run(blocks), inputs)


@pytest.mark.parametrize("family", ["jrt", "based", "attn"])
def test_gradients_of_every_mixer(family: str) -> None:
    model = from_config(MODELS[family], dtype=torch.float64, backend="parallel", seed=0)
    length = 20
    at = Call(torch.arange(length)[None], backend="parallel")
    at.encoded, at.max_encoded = torch.tensor([16]), 16
    for layer in model._layers:
        x = _draw(1, length, 16, seed=3)
        weight = next(iter(layer.mixer.parameters())).detach().clone().requires_grad_()
        name = next(iter(dict(layer.mixer.named_parameters())))

        def run(x: Tensor, weight: Tensor, mixer: Any = layer.mixer, name: str = name) -> Any:
            y, _ = torch.func.functional_call(mixer, {name: weight}, (x, None, at))
            return y

        assert torch.autograd.gradcheck(run, (x, weight), fast_mode=True)


def test_gradients_of_the_selective_scan() -> None:
    x, dt, b, c = (_draw(2, 37, n, seed=s) for s, n in enumerate((3, 3, 2, 2)))
    a, d = _draw(3, 2, seed=8), _draw(3, seed=9)

    def run(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return selective_scan(x, dt.exp() * 0.1, -a.exp(), b, c, d, backend="torch")[0]

    assert torch.autograd.gradcheck(run, (x, dt, a, b, c, d), fast_mode=True)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_the_scan_is_the_recurrence(length: int) -> None:
    x, dt, b, c = (_draw(2, length, n, seed=s) for s, n in enumerate((3, 3, 2, 2)))
    a, d = _draw(3, 2, seed=8), _draw(3, seed=9)

    def by_steps(x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h = torch.zeros(2, 3, 2, dtype=x.dtype)
        ys = []
        for t in range(length):
            step = dt[:, t].exp() * 0.1
            h = torch.exp(step[..., None] * -a.detach().exp()) * h + (step * x[:, t])[..., None] * b[:, t, None]
            ys.append((h * c[:, t, None]).sum(-1) + d.detach() * x[:, t])
        return torch.stack(ys, 1)

    def chunked(x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_scan(x, dt.exp() * 0.1, -a.detach().exp(), b, c, d.detach(), backend="torch")[0]

    _compare(by_steps, chunked, [x, dt, b, c])


def test_mambas_triton_kernels_in_the_interpreter() -> None:
    """In a process of its own: Triton asks for the interpreter when it is imported."""
    pytest.importorskip("triton")
    script = Path(__file__).parent / "interpreted_mamba.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mamba_is_that_of_transformers() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    mine = MambaLM(MODELS["mamba"])
    mine.reset()
    theirs = MambaForCausalLM(
        MambaConfig(vocab_size=256, hidden_size=16, num_hidden_layers=2, state_size=4, expand=2, conv_kernel=4)
    ).eval()
    state = {key.replace("backbone.embedding.", "backbone.embeddings."): t for key, t in mine.state_dict().items()}
    theirs.load_state_dict(state)
    ids = torch.randint(0, 250, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(
            mine.logits(mine.hidden(ids)[0]), theirs(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4
        )
