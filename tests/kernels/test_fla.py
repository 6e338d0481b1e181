"""The backend "fla": which calls it takes, what it passes to fla, and what it does with the results; fla itself only where it is installed.

Without fla a stand-in computes what `chunk_linear_attn` documents, in PyTorch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval.kernels import TaylorState, dispatch, feature_map, taylor_linear_attention
from jrt_eval.kernels.causal_dot_product import fla as product
from jrt_eval.kernels.causal_dot_product.reference import causal_dot_product
from jrt_eval.kernels.taylor_linear_attention import fla, reference

calls: list[dict[str, Any]] = []


def stand_in(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, normalize: bool = True, head_first: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    if q.shape[1] < q.shape[2]:
        raise DeprecationWarning("head-first format")
    calls.append({"scale": scale, "normalize": normalize, "state": initial_state, "dtype": q.dtype})
    assert q.shape[-1] <= 256
    assert all(x.is_contiguous() for x in (q, k, v))
    assert initial_state is None or initial_state.dtype == torch.float32
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    y, final = causal_dot_product((q * scale).float(), k.float(), v.float(), initial_state)
    if normalize:
        y = y / (q * scale * k.cumsum(1)).sum(-1, keepdim=True)
    return y.to(q.dtype), final if output_final_state else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("fla.ops.linear_attn")
    module.chunk_linear_attn = stand_in  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.linear_attn", module)
    product._operator.cache_clear()
    calls.clear()
    yield
    product._operator.cache_clear()


def inputs(length: int = 70, d: int = 16, f: int = 24, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, length, heads, d, generator=g).bfloat16() for _ in range(2))
    return q, k, (torch.randn(2, length, heads, f, generator=g) + 0.5).bfloat16()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefixed", [False, True])
def test_taylor(fake: None, prefixed: bool, masked: bool) -> None:
    q, k, v = inputs()
    mask = torch.arange(70) < torch.tensor([[70], [30]]) if masked else None
    _, ke, ve = inputs(50)
    state = reference.encode_prefix(ke, ve, None) if prefixed else None
    y, final = fla.taylor_linear_attention(q, k, v, state, mask, None)
    assert [call["scale"] for call in calls] == [1.0]
    assert not calls[0]["normalize"]
    assert (calls[0]["state"] is not None) == prefixed
    want = oracle.taylor(q, k, v, prefix=(ke, ve) if prefixed else None, mask=mask)
    assert oracle.error(y, want) < 1e-2
    _, last = reference.taylor_linear_attention(q, k, v, state, mask, None)
    assert oracle.error(final.kv, last.kv) < 4e-3
    assert oracle.error(final.k, last.k) < 4e-3
    assert final.kv.dtype == final.k.dtype == torch.float32


def test_gradients(fake: None) -> None:
    qkv = [x.requires_grad_() for x in inputs()]
    state = reference.encode_prefix(qkv[1], qkv[2], None)
    got = torch.autograd.grad(fla.taylor_linear_attention(*qkv, state, None, None)[0].float().square().sum(), qkv)
    exact = oracle.taylor(*qkv, prefix=(qkv[1], qkv[2]))
    for mine, theirs in zip(got, torch.autograd.grad(exact.square().sum(), qkv), strict=True):
        assert oracle.error(mine, theirs) < 2e-2


def test_causal_product(fake: None) -> None:
    q, k, v = inputs()
    state = torch.randn(2, 2, 16, 24)
    y, final = product.causal_dot_product(q, k, v, state)
    assert len(calls) == 1
    want, last = causal_dot_product(q, k, v, state)
    assert oracle.error(y, want) < 1e-2
    assert oracle.error(final, last) < 1e-5


@pytest.mark.parametrize(
    ("shape", "decay"),
    [({"length": 1}, None), ({"length": 0}, None), ({"d": 22}, None), ({}, torch.tensor([0.5, 0.9]))],
    ids=["shorter than heads", "no token", "276 features", "decay"],
)
def test_what_the_reference_takes(fake: None, shape: dict[str, int], decay: Tensor | None) -> None:
    q, k, v = inputs(**shape)
    y, _ = fla.taylor_linear_attention(q, k, v, None, None, decay)
    assert not calls
    want, _ = reference.taylor_linear_attention(q, k, v, None, None, decay)
    assert torch.equal(y, want)


def test_without_a_working_fla_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops.linear_attn", None)
    product._operator.cache_clear()
    q, k, v = inputs()
    with caplog.at_level(logging.WARNING, logger="jrt_eval.kernels"):
        for _ in range(2):
            y, _ = fla.taylor_linear_attention(q, k, v, None, None, None)
    product._operator.cache_clear()
    assert oracle.error(y, oracle.taylor(q, k, v)) < 1e-2
    assert len(caplog.records) == 1
    assert "flash-linear-attention does not import" in caplog.text


@pytest.mark.parametrize(
    ("built", "installed", "dtype", "operator", "chosen"),
    [
        (True, True, torch.bfloat16, "taylor_linear_attention", "cuda"),
        (False, True, torch.bfloat16, "taylor_linear_attention", "fla"),
        (False, True, torch.bfloat16, "causal_dot_product", "fla"),
        (False, True, torch.bfloat16, "taylor_linear_attention_step", "torch"),
        (False, True, torch.float32, "taylor_linear_attention", "torch"),
        (False, True, torch.float16, "taylor_linear_attention", "torch"),
        (False, False, torch.bfloat16, "taylor_linear_attention", "torch"),
    ],
)
def test_auto_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    built: bool, installed: bool, dtype: torch.dtype, operator: str, chosen: str,
) -> None:  # fmt: skip
    entries = dispatch.BACKENDS
    changes = {
        "cuda": replace(entries["cuda"], missing=None if built else "not built; build it"),
        "fla": replace(entries["fla"], missing=None if installed else "not installed; install it"),
    }
    for name, entry in changes.items():
        monkeypatch.setitem(dispatch.BACKENDS, name, entry)
    monkeypatch.setattr(dispatch, "_logged", set())
    like: Any = SimpleNamespace(device=torch.device("cuda:0"), dtype=dtype)
    with caplog.at_level(logging.INFO, logger="jrt_eval.kernels"):
        assert dispatch._choose(operator, like, "auto") == chosen
    names = {"cuda": "compiled ('cuda')", "fla": "flash-linear-attention ('fla')", "torch": "PyTorch"}
    reason = "" if built else ", not 'cuda': not built; build it"
    assert [r.message for r in caplog.records] == [f"kernels on cuda: {names[chosen]}{reason}"]


@pytest.mark.skipif(
    not torch.cuda.is_available() or dispatch.BACKENDS["fla"].missing is not None,
    reason="PyTorch sees no GPU, or there is no fla",
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_on_a_gpu(prefixed: bool) -> None:
    q, k, v = (x.cuda() for x in inputs(length=300, f=64))
    prefix = [x.cuda() for x in inputs(length=100, f=64)[1:]]
    state = reference.encode_prefix(*prefix, None) if prefixed else None
    y, final = taylor_linear_attention(q, k, v, state, backend="fla")
    want = oracle.taylor(*(x.cpu() for x in (q, k, v)), prefix=tuple(x.cpu() for x in prefix) if prefixed else None)  # type: ignore[arg-type]
    assert oracle.error(y.cpu(), want) < 1e-2
    fk = feature_map(k.double().transpose(1, 2))
    sums = fk.transpose(-1, -2) @ v.double().transpose(1, 2)
    assert oracle.error(final.kv, sums if state is None else sums + state.kv) < 4e-3
    assert isinstance(final, TaylorState)
