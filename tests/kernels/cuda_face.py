"""The Python face of the CUDA kernels over a module that computes nothing and records its calls. Run by test_kernels_cuda_face.py."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

BINDINGS = (Path(__file__).parents[2] / "csrc" / "cuda" / "bindings.cpp").read_text(encoding="utf-8")
calls: list[tuple[str, tuple[Any, ...]]] = []
stand_in: Any = types.ModuleType("jrt_eval._cuda")
stand_in.ABI = int(re.search(r'"ABI"\) = (\d+)', BINDINGS)[1])  # type: ignore[index]
stand_in.HOPPER = True
stand_in.generic_shared = lambda *_: 1000
for name in ("linear", "step", "conv"):
    setattr(stand_in, name, lambda *args, name=name: calls.append((name, args)))
sys.modules["jrt_eval._cuda"] = stand_in

from jrt_eval.kernels.short_conv import cuda as conv  # noqa: E402
from jrt_eval.kernels.taylor_linear_attention import cuda  # noqa: E402

cuda.facts = lambda _: (132, 232448, True)  # type: ignore[assignment]  # an H200's
cuda.stream = conv.stream = lambda _: 0  # type: ignore[assignment]
torch.cuda.device = lambda _: contextlib.nullcontext()  # type: ignore[assignment, misc]


def parameters(function: str) -> int:
    return re.search(rf"void {function}\((.*?)\) \{{", BINDINGS, re.DOTALL)[1].count(",") + 1  # type: ignore[index]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def linear(batch: int, length: int, d: int, f: int, prefix: int | None = None, **kind: Any) -> tuple[int, int, int]:
    """Calls of the module, the kernel of the last, and into how many parts it cuts."""
    before = len(calls)
    q, k, v = (
        random(batch, length, 4, d, **kind),
        random(batch, length, 4, d, **kind),
        random(batch, length, 4, f, **kind),
    )
    encoder = (
        None if prefix is None else (random(batch, prefix, 4, d, **kind), random(batch, prefix, 4, f, **kind), None)
    )
    y, kv, k_sum, _ = cuda._linear(q, k, v, None, None, None, None, True, False, encoder)
    assert y.shape == v.shape
    assert (kv.shape[2], k_sum.shape[2]) == ((d + 1) * (d + 2) // 2,) * 2
    made = calls[before:]
    return len(made), made[-1][1][-2] if made else -1, made[-1][1][-6] if made else 0


with torch.no_grad():
    assert linear(2, 100, 16, 64) == (1, cuda.HOPPER, 1)
    assert linear(2, 16384, 16, 64) == (1, cuda.HOPPER, 33)  # one round of blocks, two for each multiprocessor
    assert linear(2, 16384, 16, 128)[2] == 16  # two columns of blocks
    assert linear(64, 100, 16, 64, prefix=50) == (1, cuda.HOPPER, 1)  # encoder and tokens in one launch
    for prefix, parts in (
        (50, 1),
        (8192, 16),
        (8193, 17),
        (0, 0),
    ):  # cut: so is the encoder, into parts of 512 tokens as well
        assert linear(2, 16384, 16, 64, prefix=prefix) == (1, cuda.HOPPER, 33)
        assert calls[-1][1][-5] == parts
    assert linear(2, 100, 16, 32)[1] == cuda.TENSOR_CORES
    assert linear(2, 100, 8, 64, prefix=50)[:2] == (2, cuda.TENSOR_CORES)
    assert linear(2, 100, 16, 64, dtype=torch.float16)[1] == cuda.TENSOR_CORES
    assert linear(2, 100, 16, 64, dtype=torch.float32)[1] == cuda.GENERIC
    for empty in ((0, 5), (2, 0)):
        assert linear(*empty, 16, 64) == (0, -1, 0)
    assert linear(2, 0, 16, 64, prefix=7)[0] == 1  # only the encoder
    x = random(2, 5, 4, 17)
    cuda._linear(x[..., 1:], x[..., :16], random(2, 5, 4, 64), None, None, None, None, True, False)
    assert calls[-1][1][-2] == cuda.TENSOR_CORES  # rows are not aligned to 16 bytes
    q = random(2, 5, 1, 16).expand(-1, -1, 4, -1)
    cuda._linear(q, q, random(2, 5, 4, 64), None, None, None, None, True, False)
    assert calls[-1][1][-2] == cuda.TENSOR_CORES  # heads that lie in one place have no map for the copy engine
    one = torch.as_strided(random(1, 5, 1, 16), (1, 5, 1, 16), (0, 16, 3, 1))
    cuda._linear(one, one, random(1, 5, 1, 64), None, None, None, None, True, False)
    assert calls[-1][1][-2] == cuda.TENSOR_CORES  # a step that is none, but not of whole blocks
    state = random(2, 4, 153, 64).float(), random(2, 4, 153).float()
    cuda._step(random(2, 4, 16), random(2, 4, 16), random(2, 4, 64), *state, None)
    conv._short_conv(random(2, 9, 6), random(2, 9, 6), random(6, 1, 3), None, None, torch.tensor([3, 99]), True)

for called in ("linear", "step", "conv"):
    counts = {len(args) for name, args in calls if name == called}
    assert counts == {parameters(called)}, (called, counts)
print(len(calls), "calls")
