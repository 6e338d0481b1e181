"""Compares jrt_eval.models.fused_triton with the PyTorch code on the device named, and prints how many cases there were."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from jrt_eval.models import fused_triton
from jrt_eval.models.recurrent import layers

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def main() -> None:
    device = sys.argv[1]
    g = torch.Generator().manual_seed(0)
    layers._fused = lambda *_: None  # type: ignore[assignment]
    seen = 0

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device, dtype)

    def same(got: torch.Tensor, want: torch.Tensor) -> None:
        nonlocal seen
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        bound = TOLERANCE[got.dtype]
        torch.testing.assert_close(got, want, rtol=bound, atol=bound)
        seen += 1

    for dtype in TOLERANCE:
        for width in (1, 48, 1792):
            for residual in (torch.float32, dtype):
                norm = layers.RMSNorm(width, 1e-5).to(device, dtype)
                norm.weight.data = normal(width, dtype=dtype)
                r, y = normal(2, 3, width, dtype=residual), normal(2, 3, width, dtype=dtype)
                for got, want in zip(
                    fused_triton.add_norm(r, y, norm.weight, norm.eps), layers.add_norm(r, y, norm), strict=True
                ):
                    same(got, want)
            h = normal(2, 3, 2 * width, dtype=dtype)
            up, gate = h.float().chunk(2, -1)
            same(fused_triton.swiglu(h), (F.silu(gate) * up).to(dtype))
        for heads, dim, n in ((4, 12, 6), (3, 70, 18), (16, 112, 56), (2, 8, 1)):
            q = normal(2, 5, 3, heads, dim, dtype=dtype).unbind(-3)[1]  # as Wqkv's output is cut
            angles = normal(2, 5, n)
            same(fused_triton.rotate(q, angles.cos(), angles.sin()), layers.rotate(q, angles.cos(), angles.sin()))
            step = q[:, 0]
            same(
                fused_triton.rotate(step, angles[:, 0].cos(), angles[:, 0].sin()),
                layers.rotate(step, angles[:, 0].cos(), angles[:, 0].sin()),
            )
    for empty in (fused_triton.swiglu(normal(0, 8)), fused_triton.rotate(normal(0, 2, 4), normal(0, 2), normal(0, 2))):
        assert empty.numel() == 0
    print(seen)


if __name__ == "__main__":
    main()
