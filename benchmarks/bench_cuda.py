"""Both sweeps of the paper's Table 5 on a GPU: prefill of one layer, batch 16 over lengths and length 16,384 over batches.

bfloat16, 16 heads, feature dim 16, head dim 64; JRT-RNN's encoder has half the length. Medians of seven; the rate of a copy is
measured first, and "of copy" is the fewest bytes (q, k, v, encoder k and v, output, once each) over the time, over that rate.
PyTorch's attention stands beside three points. Usage: python benchmarks/bench_cuda.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jrt_eval import kernels

HEADS, FEATURE_DIM, HEAD_DIM = 16, 16, 64
POINTS = [(16, 2**n) for n in range(11, 18)] + [(batch, 16384) for batch in (2, 4, 8, 32, 64)]
BESIDE = [(16, 2048), (16, 32768), (2, 16384)]
ATTENTION = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    call()
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written in a millisecond."""
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / milliseconds(lambda: y.copy_(x))


def random(batch: int, length: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, length, HEADS, dim, device="cuda", dtype=torch.bfloat16)


def point(batch: int, length: int, rate: float) -> str:
    q, k, v = (random(batch, length, dim) for dim in (FEATURE_DIM, FEATURE_DIM, HEAD_DIM))
    k_enc, v_enc = (random(batch, length // 2, dim) for dim in (FEATURE_DIM, HEAD_DIM))
    based = milliseconds(lambda: kernels.taylor_linear_attention(q, k, v))
    jrt = milliseconds(lambda: kernels.taylor_linear_attention(q, k, v, kernels.encode_prefix(k_enc, v_enc)))
    least = 2 * sum(x.numel() for x in (q, k, v, v))
    encoder = 2 * sum(x.numel() for x in (k_enc, v_enc))
    line = f"{batch} x {length}: Based {based:.3f} ms ({least / based / rate:.1%} of copy)"
    line += f", JRT-RNN {jrt:.3f} ms ({(least + encoder) / jrt / rate:.1%})"
    if (batch, length) in BESIDE:
        x = torch.randn(batch, HEADS, length, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        for name, backend in ATTENTION.items():
            with sdpa_kernel(backend):
                line += (
                    f", {name} {milliseconds(lambda: scaled_dot_product_attention(x, x, x, is_causal=True), 3):.3f} ms"
                )
    return line


@torch.no_grad()
def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda needs a GPU")
    rate = copy_rate()
    print(f"copy {rate / 1e9:.3f} TB/s", flush=True)
    for batch, length in POINTS:
        print(point(batch, length, rate), flush=True)


if __name__ == "__main__":
    main()
