"""The CUDA kernels' sources, run on the processor by emulate.hpp: indices, fragments and barriers, where no GPU is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval.kernels import TaylorState, feature_map, num_features, short_conv, taylor_linear_attention_step

ROOT = Path(__file__).parents[2]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Pointer, Int = ctypes.c_void_p, ctypes.c_int64


def fields(names: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# The structures of csrc/cuda/args.hpp.
class View(ctypes.Structure):
    _fields_ = [("data", Pointer), *fields("batch length head dim", Int)]


class Linear(ctypes.Structure):
    _fields_ = [
        *fields("q k v k_enc v_enc", View),
        *fields("y denominator kv_in k_in kv_out k_out mask mask_enc decay scratch", Pointer),
        *fields("batches length length_enc heads dim features head_dim segments segments_enc", Int),
        ("dtype", ctypes.c_int),
        ("taylor", ctypes.c_bool),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *fields("q k v", View),
        *fields("y kv k_sum decay", Pointer),
        *fields("batches heads dim features head_dim", Int),
        ("dtype", ctypes.c_int),
    ]


class Conv(ctypes.Structure):
    _fields_ = [
        *fields("a b", View),
        *fields("y weight bias state_in state_out lengths", Pointer),
        *fields("batches length channels width", Int),
        ("dtype", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the emulation with")
    library = tmp_path_factory.mktemp("emulated") / "kernels.so"
    here = ["-I", str(ROOT / "tests" / "kernels"), "-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "cuda")]
    build = [compiler, "-O1", "-std=c++17", "-DJRT_EMULATE", "-DJRT_HOPPER", "-w", "-fPIC", "-shared", *here]
    made = subprocess.run(
        [*build, str(ROOT / "tests" / "kernels" / "emulate.cpp"), "-o", str(library)], capture_output=True, text=True
    )
    if "_Float16" in made.stderr:
        pytest.skip("this g++ has no 16-bit floats")
    assert made.returncode == 0, made.stderr
    return ctypes.CDLL(str(library))


def at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def view(x: Tensor) -> View:
    stride = x.stride() if x.dim() == 4 else (x.stride(0), 0, *x.stride()[1:])
    return View(x.data_ptr(), *stride)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


GENERIC, TENSOR_CORES, HOPPER = 0, 1, 2  # args.hpp's kernels
NOWHERE = View(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kernel", "dtype", "length", "d", "f", "segments", "masked"),
    [
        (TENSOR_CORES, torch.bfloat16, 130, 16, 64, 1, False),
        (TENSOR_CORES, torch.bfloat16, 150, 16, 64, 2, True),
        (TENSOR_CORES, torch.float16, 70, 16, 32, 1, True),
        (TENSOR_CORES, torch.bfloat16, 66, 13, 100, 1, False),
        (HOPPER, torch.bfloat16, 200, 16, 64, 1, False),
        (HOPPER, torch.bfloat16, 150, 16, 72, 2, True),
        (GENERIC, torch.float32, 70, 16, 20, 1, True),
        (GENERIC, torch.bfloat16, 33, 5, 17, 1, False),
    ],
)
def test_prefill(
    emulated: ctypes.CDLL, kernel: int, dtype: torch.dtype, length: int, d: int, f: int, segments: int, masked: bool
) -> None:
    g = torch.Generator().manual_seed(length)
    heads, n = 2, num_features(d)
    q, k = (torch.randn(1, length, heads, d, generator=g).to(dtype) for _ in range(2))
    v = (torch.randn(1, length, heads, f, generator=g) + 0.5).to(dtype)
    ke, ve = (torch.randn(1, 40, heads, x, generator=g).to(dtype) for x in (d, f))
    fe = feature_map(ke.double().transpose(1, 2))
    kv = (fe.transpose(-1, -2) @ ve.double().transpose(1, 2)).float().contiguous()
    k_sum = fe.sum(-2).float().contiguous()
    mask = (torch.rand(1, length, generator=g) < 0.7).float() if masked else None
    seen_k, seen_v = k.clone(), v.clone()
    if mask is not None:  # what is masked may be anything
        seen_k[mask == 0] = seen_v[mask == 0] = torch.nan
    y, kv_out, k_out = poison(1, length, heads, f, dtype=dtype), poison(1, heads, n, f), poison(1, heads, n)
    scratch = poison(heads * segments * n * (f + 1))
    sizes = (1, length, 0, heads, d, n, f, segments, 0, DTYPES[dtype], True)
    outputs = (at(y), 0, at(kv), at(k_sum), at(kv_out), at(k_out), at(mask), 0, 0, at(scratch))
    args = Linear(view(q), view(seen_k), view(seen_v), NOWHERE, NOWHERE, *outputs, *sizes)
    assert emulated.emulated_linear(ctypes.byref(args), kernel) == 0
    assert oracle.error(y, oracle.taylor(q, k, v, (ke, ve), mask=mask)) < oracle.TOLERANCE[dtype]
    fk = feature_map(k.double().transpose(1, 2))
    if mask is not None:
        fk = fk * mask[:, None, :, None]
    bound = 1e-5 if kernel == GENERIC else oracle.state_tolerance("cuda", dtype, d, f)
    assert oracle.error(kv_out, kv + fk.transpose(-1, -2) @ v.double().transpose(1, 2)) < bound
    assert oracle.error(k_out, k_sum + fk.sum(-2)) < bound


@pytest.mark.parametrize("layout", ["tokens", "heads", "slices"])
def test_prefix_of_several_rows(emulated: ctypes.CDLL, layout: str) -> None:
    """Rows, heads and tokens in other orders and at other distances, as the copy engine's maps have to tell."""
    g = torch.Generator().manual_seed(11)
    batch, heads, length, encoder, d, f, n = 2, 3, 90, 70, 16, 72, num_features(16)

    def held(rows: int, dim: int) -> Tensor:
        if layout == "heads":
            return torch.randn(batch, heads, rows, dim, generator=g).bfloat16().transpose(1, 2)
        if layout == "slices":  # of tensors with more of everything
            return torch.randn(2 * batch, rows + 3, heads + 1, dim + 8, generator=g).bfloat16()[::2, 3:, 1:, 8:]
        return torch.randn(batch, rows, heads, dim, generator=g).bfloat16()

    q, k, v, ke, ve = held(length, d), held(length, d), held(length, f), held(encoder, d), held(encoder, f)
    y, denominator = poison(batch, length, heads, f, dtype=torch.bfloat16), poison(batch, length, heads)
    kv_out, k_out = poison(batch, heads, n, f), poison(batch, heads, n)
    sizes = (batch, length, encoder, heads, d, n, f, 1, 0, DTYPES[torch.bfloat16], True)
    outputs = (at(y), at(denominator), 0, 0, at(kv_out), at(k_out), 0, 0, 0, 0)
    args = Linear(*(view(x) for x in (q, k, v, ke, ve)), *outputs, *sizes)
    assert emulated.emulated_linear(ctypes.byref(args), HOPPER) == 0
    assert oracle.error(y, oracle.taylor(q, k, v, (ke, ve))) < oracle.TOLERANCE[torch.bfloat16]
    features = feature_map(torch.cat([ke, k], 1).double().transpose(1, 2))
    sums = features.transpose(-1, -2) @ torch.cat([ve, v], 1).double().transpose(1, 2)
    bound = oracle.state_tolerance("cuda", torch.bfloat16, d, f)
    assert oracle.error(kv_out, sums) < bound
    assert oracle.error(k_out, features.sum(-2)) < bound


@pytest.mark.parametrize("masked", ["", "both", "encoder", "tokens"])
@pytest.mark.parametrize(
    ("length", "encoder", "f", "segments", "segments_enc"),
    [
        (100, 130, 64, 1, 0),
        (200, 130, 64, 2, 2),
        (150, 1, 72, 2, 1),
        (130, 60, 64, 3, 1),
        (200, 200, 64, 2, 9),
        (700, 640, 64, 9, 10),  # more sums than are fetched at once
        (50, 200, 64, 1, 2),  # only the encoder in parts
    ],
)
def test_prefix(
    emulated: ctypes.CDLL, length: int, encoder: int, f: int, segments: int, segments_enc: int, masked: str
) -> None:
    """Encoder and decoder in one launch, or both cut into segments."""
    g = torch.Generator().manual_seed(5)
    heads, d, n = 2, 16, num_features(16)
    q, k, v, ke, ve = (
        torch.randn(1, rows, heads, dim, generator=g).bfloat16()
        for rows, dim in ((length, d), (length, d), (length, f), (encoder, d), (encoder, f))
    )
    mask, mask_enc = (
        (torch.rand(1, rows, generator=g) < 0.7).float() if masked in ("both", side) else None
        for rows, side in ((length, "tokens"), (encoder, "encoder"))
    )
    y, denominator = poison(1, length, heads, f, dtype=torch.bfloat16), poison(1, length, heads)
    kv_out, k_out = poison(1, heads, n, f), poison(1, heads, n)
    scratch = poison(heads * (segments + segments_enc) * n * (f + 1))
    sizes = (1, length, encoder, heads, d, n, f, segments, segments_enc, DTYPES[torch.bfloat16], True)
    outputs = (at(y), at(denominator), 0, 0, at(kv_out), at(k_out), at(mask), at(mask_enc), 0, at(scratch))
    args = Linear(*(view(x) for x in (q, k, v, ke, ve)), *outputs, *sizes)
    assert emulated.emulated_linear(ctypes.byref(args), HOPPER) == 0
    kept = (ke, ve) if mask_enc is None else tuple(x[:, mask_enc[0] > 0] for x in (ke, ve))
    assert oracle.error(y, oracle.taylor(q, k, v, kept, mask=mask)) < oracle.TOLERANCE[torch.bfloat16]
    assert denominator.isfinite().all()
    own = (k, v) if mask is None else tuple(x[:, mask[0] > 0] for x in (k, v))
    both = [torch.cat(pair, 1).double().transpose(1, 2) for pair in zip(kept, own, strict=True)]
    features, bound = feature_map(both[0]), oracle.state_tolerance("cuda", torch.bfloat16, d, f)
    assert oracle.error(kv_out, features.transpose(-1, -2) @ both[1]) < bound
    assert oracle.error(k_out, features.sum(-2)) < bound


@pytest.mark.parametrize(("dtype", "d", "f"), [(torch.float32, 16, 64), (torch.bfloat16, 7, 33)])
def test_step(emulated: ctypes.CDLL, dtype: torch.dtype, d: int, f: int) -> None:
    g = torch.Generator().manual_seed(d)
    n = num_features(d)
    q, k = (torch.randn(2, 2, d, generator=g).to(dtype) for _ in range(2))
    v = torch.randn(2, 2, f, generator=g).to(dtype)
    state = TaylorState(torch.randn(2, 2, n, f, generator=g), torch.rand(2, 2, n, generator=g) + n)
    want_state = TaylorState(state.kv.clone(), state.k.clone())
    want = taylor_linear_attention_step(q, k, v, want_state, backend="torch")
    y = poison(2, 2, f, dtype=dtype)
    step = Step(view(q), view(k), view(v), at(y), at(state.kv), at(state.k), 0, 2, 2, d, n, f, DTYPES[dtype])
    assert emulated.emulated_step(ctypes.byref(step)) == 0
    assert oracle.error(y, want) < oracle.TOLERANCE[dtype]
    assert oracle.error(state.kv, want_state.kv) < 1e-6
    assert oracle.error(state.k, want_state.k) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "channels", "width"),
    [(0, 16, 3), (1, 8, 2), (3, 24, 4), (70, 16, 3), (133, 40, 4), (20, 5, 3), (20, 8, 5)],
)
def test_conv(emulated: ctypes.CDLL, length: int, channels: int, width: int, dtype: torch.dtype) -> None:
    """Channels in whole pieces of 16 bytes and not, runs of tokens and their rests, rows of different lengths."""
    g = torch.Generator().manual_seed(length)
    both = torch.randn(2, length, 2 * channels, generator=g).to(dtype)
    a, b = both.chunk(2, -1)
    weight = torch.randn(channels, width, generator=g).to(dtype)
    bias = torch.randn(channels, generator=g).to(dtype)
    state = torch.randn(2, width - 1, channels, generator=g)
    lengths = torch.tensor([length, length // 2])
    want, want_state = short_conv(a, weight, bias, state, gate=b, lengths=lengths, backend="torch")
    y, state_out = poison(2, length, channels, dtype=dtype), poison(2, width - 1, channels)
    views = (View(x.data_ptr(), *x.stride()[:2], 0, x.stride(2)) for x in (a, b))
    where = (at(y), at(weight), at(bias), at(state), at(state_out), at(lengths))
    args = Conv(*views, *where, 2, length, channels, width, DTYPES[dtype])
    assert emulated.emulated_conv(ctypes.byref(args)) == 0
    assert oracle.error(y, want) < oracle.TOLERANCE[dtype]
    assert torch.equal(state_out, want_state)
