"""causal_dot_product, the sliding window and the gated convolution against their formulas, on every backend."""

from __future__ import annotations

import kernel_oracle as oracle
import pytest
import torch
from kernel_oracle import TOLERANCE
from torch import Tensor

from jrt_eval.kernels import (
    TaylorState,
    WindowState,
    causal_dot_product,
    short_conv,
    short_conv_step,
    sliding_window_attention,
    sliding_window_attention_step,
    taylor_linear_attention_step,
)

Where = tuple[str, str]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "n", "f"), [(0, 4, 8), (1, 3, 5), (64, 16, 64), (65, 153, 64), (200, 33, 17), (130, 273, 40)]
)
def test_causal_dot_product(where: Where, length: int, n: int, f: int, dtype: torch.dtype) -> None:
    backend, device = where
    q, k, v = (normal(2, length, 2, x, dtype=dtype, device=device, seed=s) for s, x in enumerate((n, n, f)))
    y, state = causal_dot_product(q, k, v, backend=backend)
    assert y.dtype == dtype
    assert oracle.error(y.cpu(), oracle.causal_product(q.cpu(), k.cpu(), v.cpu())) < TOLERANCE[dtype]
    assert oracle.error(state.cpu(), torch.einsum("bjhn,bjhf->bhnf", k.double(), v.double()).cpu()) < 1e-5


def test_causal_dot_product_continues_from_a_state(where: Where) -> None:
    backend, device = where
    q, k, v = (normal(2, 150, 2, x, device=device, seed=s) for s, x in enumerate((20, 20, 24)))
    whole, last = causal_dot_product(q, k, v, backend=backend)
    first, state = causal_dot_product(q[:, :70], k[:, :70], v[:, :70], backend=backend)
    rest, final = causal_dot_product(q[:, 70:], k[:, 70:], v[:, 70:], state, backend=backend)
    assert oracle.error(torch.cat([first, rest], 1), whole) < 1e-5
    assert oracle.error(final, last) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_what_is_no_number_is_not_hidden_by_a_window(where: Where, which: str, dtype: torch.dtype) -> None:
    backend, device = where
    x = {name: normal(1, 150, 2, 12, dtype=dtype, device=device, seed=s) for s, name in enumerate("qkv")}
    x[which][0, 70, 1, 3] = float("nan")
    y, _ = sliding_window_attention(*x.values(), 20, backend=backend)
    sees = slice(70, 71 if which == "q" else 90)
    assert y[0, sees, 1].isnan().any(-1).all()
    assert y[0, sees, 1].isnan().all() or which == "v"
    assert y[:, :, 0].isfinite().all()
    _, ring = sliding_window_attention(*(z[:, :69] for z in x.values()), 20, backend=backend)
    for t in (69, 70, 71):
        step = sliding_window_attention_step(*(z[:, t] for z in x.values()), ring, backend=backend)
        assert step[0, 1].isnan().any() == (t == 70 or (t > 70 and which != "q"))
        assert step[0, 0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "window", "dim"),
    [(0, 5, 8), (1, 1, 8), (40, 1, 16), (64, 65, 64), (300, 129, 64), (200, 7, 70), (130, 64, 112), (50, 200, 9)],
)
def test_window(where: Where, length: int, window: int, dim: int, dtype: torch.dtype) -> None:
    backend, device = where
    q, k, v = (normal(2, length, 2, dim, dtype=dtype, device=device, seed=s) for s in range(3))
    y, state = sliding_window_attention(q, k, v, window, backend=backend)
    assert y.dtype == dtype
    assert oracle.error(y.cpu(), oracle.window(q.cpu(), k.cpu(), v.cpu(), window)) < TOLERANCE[dtype]
    assert state.length.tolist() == [length, length]
    for t in range(max(0, length - window), length):
        assert torch.equal(state.k[:, t % window], k[:, t])
        assert torch.equal(state.v[:, t % window], v[:, t])


@pytest.mark.parametrize("window", [1, 5, 16, 100])
@pytest.mark.parametrize("cuts", [(30,), (3, 4), (0, 17, 60)])
def test_window_splits_and_steps_agree(where: Where, window: int, cuts: tuple[int, ...]) -> None:
    backend, device = where
    q, k, v = (normal(2, 80, 3, 16, device=device, seed=s) for s in range(3))
    want = oracle.window(q.cpu(), k.cpu(), v.cpu(), window)
    state: WindowState | None = None
    parts, start = [], 0
    for stop in (*cuts, 70):
        y, state = sliding_window_attention(*(x[:, start:stop] for x in (q, k, v)), window, state, backend=backend)
        parts.append(y)
        start = stop
    assert state is not None
    for t in range(70, 80):
        parts.append(sliding_window_attention_step(q[:, t], k[:, t], v[:, t], state, backend=backend)[:, None])
    assert oracle.error(torch.cat(parts, 1).cpu(), want) < 1e-5
    assert state.length.tolist() == [80, 80]


def test_window_rows_of_different_lengths(where: Where) -> None:
    backend, device = where
    window = 6
    q, k, v = (normal(3, 40, 2, 16, device=device, seed=s) for s in range(3))
    first, second = torch.tensor([20, 3, 11], device=device), torch.tensor([9, 20, 0], device=device)
    y1, state = sliding_window_attention(*(x[:, :20] for x in (q, k, v)), window, lengths=first, backend=backend)
    y2, state = sliding_window_attention(
        *(x[:, 20:] for x in (q, k, v)), window, state, lengths=second, backend=backend
    )
    y3 = sliding_window_attention_step(q[:, 0], k[:, 0], v[:, 0], state, backend=backend)
    for row in range(3):
        a, b = int(first[row]), int(second[row])
        joined = [torch.cat([x[row, :a], x[row, 20 : 20 + b], x[row, :1]])[None].cpu() for x in (q, k, v)]
        want = oracle.window(*joined, window)[0]
        got = torch.cat([y1[row, :a], y2[row, :b], y3[row][None]]).cpu()
        assert oracle.error(got, want) < 1e-5
    assert state.length.tolist() == [30, 24, 12]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "channels", "width", "biased"),
    [
        (0, 8, 3, True),
        (1, 5, 3, False),
        (2, 64, 4, True),
        (100, 130, 3, True),
        (203, 2064, 3, True),
        (65, 48, 2, False),
    ],
)
def test_conv(where: Where, length: int, channels: int, width: int, biased: bool, dtype: torch.dtype) -> None:
    backend, device = where
    a, b = (normal(2, length, channels, dtype=dtype, device=device, seed=s) for s in range(2))
    weight = normal(channels, 1, width, dtype=dtype, device=device, seed=2)
    bias = normal(channels, dtype=dtype, device=device, seed=3) if biased else None
    y, state = short_conv(a, weight, bias, gate=b, backend=backend)
    assert y.dtype == dtype
    want = oracle.conv(a.cpu(), b.cpu(), weight.cpu(), None if bias is None else bias.cpu())
    assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
    flat, _ = short_conv(a, weight[:, 0], bias, gate=b, backend=backend)
    assert torch.equal(flat, y)
    padded = torch.cat([a.new_zeros(2, width - 1, channels), a], 1)
    assert torch.equal(state, padded[:, length:].float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_conv_of_every_form(where: Where, width: int, gated: bool, silu: bool, dtype: torch.dtype) -> None:
    backend, device = where
    x = normal(2, 70, 33, dtype=dtype, device=device)
    gate = normal(2, 70, 33, dtype=dtype, device=device, seed=1) if gated else None
    weight, bias = normal(33, width, dtype=dtype, device=device, seed=2), normal(33, dtype=dtype, device=device, seed=3)
    lengths = torch.tensor([70, 2], device=device)
    want = oracle.conv(x.cpu(), None if gate is None else gate.cpu(), weight.cpu(), bias.cpu(), silu)
    y, last = short_conv(x, weight, bias, gate=gate, silu=silu, lengths=lengths, backend=backend)
    assert oracle.error(y.cpu(), want) < TOLERANCE[dtype]
    assert last.shape == (2, width - 1, 33)
    parts, state = [], None
    for start, stop in ((0, 1), (1, 1), (1, 40), (40, 65)):
        cut = None if gate is None else gate[:, start:stop]
        y, state = short_conv(x[:, start:stop], weight, bias, state, gate=cut, silu=silu, backend=backend)
        parts.append(y)
    assert state is not None
    for t in range(65, 70):
        cut = None if gate is None else gate[:, t]
        parts.append(short_conv_step(x[:, t], weight, bias, state, gate=cut, silu=silu, backend=backend)[:, None])
    assert oracle.error(torch.cat(parts, 1).cpu(), want) < TOLERANCE[dtype]
    assert torch.equal(state[0], last[0])


def test_conv_splits_steps_and_lengths_agree(where: Where) -> None:
    backend, device = where
    a, b = (normal(3, 30, 40, device=device, seed=s) for s in range(2))
    weight, bias = normal(40, 1, 3, device=device, seed=2), normal(40, device=device, seed=3)
    lengths = torch.tensor([20, 1, 0], device=device)
    y1, state = short_conv(a[:, :20], weight, bias, gate=b[:, :20], lengths=lengths, backend=backend)
    y2, state = short_conv(a[:, 20:25], weight, bias, state, gate=b[:, 20:25], backend=backend)
    y3 = short_conv_step(a[:, 25], weight, bias, state, gate=b[:, 25], backend=backend)
    for row, n in enumerate(lengths.tolist()):
        x, g = (torch.cat([t[row, :n], t[row, 20:26]])[None].cpu() for t in (a, b))
        want = oracle.conv(x, g, weight.cpu(), bias.cpu())[0]
        got = torch.cat([y1[row, :n], y2[row], y3[row][None]]).cpu()
        assert oracle.error(got, want) < 1e-5
        assert torch.equal(state[row].cpu(), x[0, -2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_step_updates_a_state_of_any_dtype(where: Where, dtype: torch.dtype) -> None:
    backend, device = where
    a, b = (normal(2, 12, device=device, seed=s) for s in range(2))
    weight = normal(12, 3, device=device, seed=2)
    before = normal(2, 2, 12, dtype=dtype, device=device, seed=3)
    state = before.clone()
    short_conv_step(a, weight, None, state, gate=b, backend=backend)
    assert torch.equal(state, torch.stack([before[:, 1], a.to(dtype)], 1))


def test_autograd_notices_states_written_in_place(where: Where) -> None:
    """As with PyTorch's own in-place operators: a graph that has kept a state refuses to go back through the new one."""
    backend, device = where
    q, k, v = (normal(2, 3, dim, device=device, seed=dim) for dim in (4, 4, 8))
    taylor = TaylorState(normal(2, 3, 15, 8, device=device), normal(2, 3, 15, device=device))
    _, window = sliding_window_attention(*(x[:, None] for x in (q, k, k)), 4, backend=backend)
    conv = normal(2, 2, 12, device=device)
    kept = [*taylor, window.k, window.v, conv]
    graphs = [(torch.ones((), device=device, requires_grad=True) * x).sum() for x in kept]
    taylor_linear_attention_step(q, k, v, taylor, backend=backend)
    sliding_window_attention_step(q, k, k, window, backend=backend)
    short_conv_step(normal(2, 12, device=device), normal(12, 3, device=device), None, conv, backend=backend)
    for graph in graphs:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            graph.backward()
