"""The kernels compile for aarch64 (no x86 header, type or flag has crept into what every machine builds), and an emulator of that
processor gets the right numbers from them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval.kernels import num_features

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(COMPILER)
    if found is None:
        pytest.skip(f"no {COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)")
    return found


def run(*command: str) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("source", ["kernels.cpp", "common/cpu.cpp", "common/absent.cpp"])
def test_compiles_for_aarch64(compiler: str, source: str, tmp_path: Path) -> None:
    made = tmp_path / "object.o"
    flags = ["-std=c++17", "-O0", "-fPIC", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
    flags += ["-I", str(ROOT / "csrc")]
    run(compiler, *flags, "-c", str(ROOT / "csrc" / source), "-o", str(made))
    assert made.read_bytes()[18:20] == b"\xb7\x00"  # ELF machine 183: AArch64


@pytest.fixture(scope="module")
def program(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a program for aarch64 that runs the kernels: see aarch64.cpp."""
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        pytest.skip(f"no {EMULATOR} (Debian: apt-get install qemu-user)")
    made = tmp_path_factory.mktemp("aarch64") / "kernels"
    sources = [ROOT / "csrc" / name for name in ("kernels.cpp", "common/cpu.cpp")]
    sources.append(ROOT / "tests" / "kernels" / "aarch64.cpp")
    # -O1 with fused multiply-adds, as the build has them: what NEON's code for the vectors is, -O0 would not show
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-static", "-w", "-I", str(ROOT / "csrc")]
    run(compiler, *flags, *map(str, sources), "-o", str(made))
    return [emulator, str(made)]


@pytest.mark.parametrize(
    ("dtype", "d", "f"), [(torch.float32, 16, 64), (torch.bfloat16, 7, 33), (torch.float16, 5, 12)]
)
def test_an_emulated_aarch64_computes_the_same(program: list[str], dtype: torch.dtype, d: int, f: int) -> None:
    batches, length, heads, window = 2, 75, 2, 20
    g = torch.Generator().manual_seed(d)
    q, k = (torch.randn(batches, length + 1, heads, d, generator=g).to(dtype) for _ in range(2))
    v = (torch.randn(batches, length + 1, heads, f, generator=g) + 0.5).to(dtype)
    sizes = [batches, length, heads, d, f, window, DTYPES[dtype]]
    inputs = b"".join(x.view(torch.uint8).numpy().tobytes() for x in (q, k, v))
    found = subprocess.run([*program, *map(str, sizes)], input=inputs, capture_output=True, check=True).stdout

    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((batches, length, heads, f), dtype),
        ((batches, 1, heads, f), dtype),
        ((batches, heads, num_features(d), f), torch.float32),
        ((batches, heads, num_features(d)), torch.float32),
        ((batches, length + 1, heads, f), dtype),
    ]
    got: list[Tensor] = []
    for shape, kind in shapes:
        size = torch.empty(shape, dtype=kind).nbytes
        got.append(torch.frombuffer(bytearray(found[:size]), dtype=kind).view(shape))
        found = found[size:]
    assert not found
    y, last, kv, k_sum, w = got
    assert oracle.error(torch.cat([y, last], 1), oracle.taylor(q, k, v)) < oracle.TOLERANCE[dtype]
    assert oracle.error(w, oracle.window(v, v, v, window)) < oracle.TOLERANCE[dtype]
    assert oracle.error(kv[:, :, 0], v.double().sum(1)) < 1e-5  # the first feature is 1
    assert oracle.error(k_sum[:, :, 0], torch.full((batches, heads), length + 1.0)) < 1e-6
