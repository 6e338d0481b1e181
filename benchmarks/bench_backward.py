"""Time and memory (beyond inputs and gradients) of the forward and backward pass of one layer's linear attention on a GPU.

    python benchmarks/bench_backward.py

bfloat16, 16 heads, feature dim 16, head dim 64. Three backward passes: Triton and PyTorch after the compiled forward pass, and `parallel`, which
training uses where there are no kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from jrt_eval.bench.timing import medians
from jrt_eval.errors import UserError

try:
    from jrt_eval.kernels import taylor_linear_attention
    from jrt_eval.kernels.taylor_linear_attention import backward, cuda, triton
except UserError as error:  # no CUDA kernels here
    raise SystemExit(f"bench_backward.py: {error}") from None

HEADS, FEATURE_DIM, HEAD_DIM = 16, 16, 64
POINTS = [(8, 2048), (1, 2048), (2, 16384), (16, 8192)]


def milliseconds(call: Callable[[], object], rounds: int = 5) -> float:
    return 1e3 * medians({"": call}, rounds, device=torch.device("cuda"))[""]


def point(batch: int, length: int) -> str:
    q, k, v, g = (
        torch.randn(batch, length, HEADS, n, device="cuda", dtype=torch.bfloat16)
        for n in (FEATURE_DIM, FEATURE_DIM, HEAD_DIM, HEAD_DIM)
    )

    def forward(backend: str) -> torch.Tensor:
        return taylor_linear_attention(q, k, v, backend=backend)[0]

    line = f"{batch} x {length}: forward {milliseconds(lambda: forward('cuda')):.3f} ms"
    for x in (q, k, v):
        x.requires_grad_()
    kept = cuda._gradients
    for name, backend, module in (
        ("Triton", "cuda", triton),
        ("PyTorch", "cuda", backward),
        ("parallel", "parallel", backward),
    ):
        cuda._gradients = lambda *_, module=module: module  # type: ignore[misc, assignment]
        try:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            time = milliseconds(lambda backend=backend: torch.autograd.grad(forward(backend), (q, k, v), g))  # type: ignore[misc]
            line += f"; both, {name} {time:.3f} ms, {(torch.cuda.max_memory_allocated() - before) / 2**20:,.0f} MiB"
        except torch.OutOfMemoryError:
            line += f"; {name} out of memory"
    cuda._gradients = kept
    return line


def main() -> None:
    for batch, length in POINTS:
        print(point(batch, length), flush=True)


if __name__ == "__main__":
    main()
