"""Forward and backward pass of one layer's linear attention on a GPU, and the memory they take beyond inputs and gradients.

bfloat16, 16 heads, feature dim 16, head dim 64. Beside the compiled forward pass with the Triton backward pass: the same with the
PyTorch backward pass, and `parallel`, the form that training takes elsewhere. Usage: python benchmarks/bench_backward.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from jrt_eval.kernels import backward, cuda, taylor_linear_attention
from jrt_eval.training import parallel

HEADS, FEATURE_DIM, HEAD_DIM = 16, 16, 64
POINTS = [(8, 2048), (1, 2048), (2, 16384), (16, 8192)]


def milliseconds(call: Callable[[], object], rounds: int = 5) -> float:
    call()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    triton = cuda._triton()
    for batch, length in POINTS:
        q, k, v, g = (
            torch.randn(batch, length, HEADS, n, device="cuda", dtype=torch.bfloat16).requires_grad_()
            for n in (FEATURE_DIM, FEATURE_DIM, HEAD_DIM, HEAD_DIM)
        )
        g = g.detach()
        line = f"{batch} x {length}:"
        with torch.no_grad():
            line += f" forward {milliseconds(lambda: taylor_linear_attention(q, k, v, backend='cuda')):.3f} ms;"
        for name, backend, module in (
            ("Triton", "cuda", triton),
            ("PyTorch", "cuda", backward),
            ("parallel", parallel.NAME, None),
        ):
            cuda._triton = lambda module=module: module  # type: ignore[misc, assignment]

            def both(backend: str = backend) -> None:
                y, _ = taylor_linear_attention(q, k, v, backend=backend)
                torch.autograd.grad(y, (q, k, v), g)

            try:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                time = milliseconds(both)
                line += f" {name} {time:.3f} ms, {(torch.cuda.max_memory_allocated() - before) / 2**20:,.0f} MiB;"
            except torch.OutOfMemoryError:
                line += f" {name} out of memory;"
        print(f"{line} forward and backward", flush=True)


if __name__ == "__main__":
    main()
