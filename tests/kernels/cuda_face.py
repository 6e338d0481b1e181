"""The Python face of the CUDA kernels over a module that computes nothing and records its calls. Run by test_cuda_face.py.

The arguments' names are those of csrc/<operator>/register_cuda.cpp or, of a compiled module whose path is given, of its docstrings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

CSRC = Path(__file__).parents[2] / "csrc"


def declared() -> dict[str, list[str]]:
    """Functions of the sources and their arguments."""
    found = {}
    for path in CSRC.glob("*/register_cuda.cpp"):
        for definition in path.read_text(encoding="utf-8").split("m.def(")[1:]:
            name = definition.split('"')[1]
            found[name] = re.findall(r'arg\("(\w+)"\)', definition)
    return found


def documented(module: Any) -> dict[str, list[str]]:
    """The same of a compiled module."""
    signatures = {name: re.match(r"\w+\((.*)\) ->", f.__doc__ or "") for name, f in vars(module).items() if callable(f)}
    return {name: re.findall(r"(\w+): ", found[1]) for name, found in signatures.items() if found}


def compiled(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("jrt_eval._cuda", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bindings = (CSRC / "cuda" / "bindings.cpp").read_text(encoding="utf-8")
functions = documented(compiled(sys.argv[1])) if len(sys.argv) > 1 else declared()
calls: list[tuple[str, dict[str, Any]]] = []
stand_in: Any = types.ModuleType("jrt_eval._cuda")
stand_in.ABI = int(re.search(r'"ABI"\) = (\d+)', bindings)[1])  # type: ignore[index]
stand_in.HOPPER = True
stand_in.use_exchange_table = lambda capsule: None
stand_in.generic_shared = lambda dim, features, taylor: 1000
OPERATORS = {
    "taylor_linear_attention",
    "taylor_linear_attention_step",
    "causal_dot_product",
    "short_conv",
    "selective_scan",
}
assert functions.keys() - {"use_exchange_table", "generic_shared"} == OPERATORS, sorted(functions)
for name in OPERATORS:
    setattr(stand_in, name, lambda name=name, **arguments: calls.append((name, arguments)))
sys.modules["jrt_eval._cuda"] = stand_in

from jrt_eval.kernels.causal_dot_product import cuda as dot  # noqa: E402
from jrt_eval.kernels.selective_scan import cuda as scan  # noqa: E402
from jrt_eval.kernels.short_conv import cuda as conv  # noqa: E402
from jrt_eval.kernels.taylor_linear_attention import cuda  # noqa: E402

cuda.facts = lambda _: (132, 232448, True)  # type: ignore[assignment]  # an H200's
for face in (cuda, dot, conv, scan):
    face.stream = lambda _: 0  # type: ignore[attr-defined]
torch.cuda.device = torch.cuda.device_of = lambda _: contextlib.nullcontext()  # type: ignore[assignment, misc]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def last(argument: str) -> Any:
    return calls[-1][1][argument]


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
    y, kv, k_sum, _ = cuda._linear(q, k, v, None, None, None, None, False, encoder)
    assert y.shape == v.shape
    assert (kv.shape[2], k_sum.shape[2]) == ((d + 1) * (d + 2) // 2,) * 2
    made = len(calls) - before
    return made, last("kernel") if made else -1, last("segments") if made else 0


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
        assert last("segments_enc") == parts
    assert linear(2, 100, 16, 32)[1] == cuda.TENSOR_CORES
    assert linear(2, 100, 8, 64, prefix=50)[:2] == (2, cuda.TENSOR_CORES)
    assert linear(2, 100, 16, 64, dtype=torch.float16)[1] == cuda.TENSOR_CORES
    assert linear(2, 100, 16, 64, dtype=torch.float32)[1] == cuda.GENERIC
    for empty in ((0, 5), (2, 0)):
        assert linear(*empty, 16, 64) == (0, -1, 0)
    assert linear(2, 0, 16, 64, prefix=7)[0] == 1  # only the encoder
    assert last("q") is None and not last("y").numel()
    x = random(2, 5, 4, 17)
    cuda._linear(x[..., 1:], x[..., :16], random(2, 5, 4, 64), None, None, None, None, False)
    assert last("kernel") == cuda.TENSOR_CORES  # rows are not aligned to 16 bytes
    q = random(2, 5, 1, 16).expand(-1, -1, 4, -1)
    cuda._linear(q, q, random(2, 5, 4, 64), None, None, None, None, False)
    assert last("kernel") == cuda.TENSOR_CORES  # heads in one place have no TMA map
    one = torch.as_strided(random(1, 5, 1, 16), (1, 5, 1, 16), (0, 16, 3, 1))
    cuda._linear(one, one, random(1, 5, 1, 64), None, None, None, None, False)
    assert last("kernel") == cuda.TENSOR_CORES  # a stride that is never taken, but not of whole blocks
    state = random(2, 4, 153, 64).float(), random(2, 4, 153).float()
    cuda._step(random(2, 4, 16), random(2, 4, 16), random(2, 4, 64), *state, None)
    conv._short_conv(random(2, 9, 6), random(2, 9, 6), random(6, 1, 3), None, None, torch.tensor([3, 99]), True)
    dot._prefill(random(2, 9, 4, 16), random(2, 9, 4, 16), random(2, 9, 4, 8), None)
    x, b = random(2, 900, 8), random(2, 900, 1, 16)
    scan.selective_scan(x, x, random(8, 16), b, b, None, None, None, None, None, True)
    assert last("segments") == 7 and last("ends").shape == (2, 7, 8, 16)

assert {name for name, _ in calls} == OPERATORS
for name, arguments in calls:
    assert sorted(arguments) == sorted(functions[name]), (name, sorted(arguments), functions[name])
print(len(calls), "calls")
