"""Compares the Triton kernels of rms_norm, swiglu and rotary with their references on the device named, and prints how many cases there were."""

from __future__ import annotations

import sys

import torch

from jrt_eval.kernels.rms_norm import reference as rms_norm
from jrt_eval.kernels.rms_norm import triton as rms_norm_triton
from jrt_eval.kernels.rotary import reference as rotary
from jrt_eval.kernels.rotary import triton as rotary_triton
from jrt_eval.kernels.swiglu import reference as swiglu
from jrt_eval.kernels.swiglu import triton as swiglu_triton

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def main() -> None:
    device = sys.argv[1]
    g = torch.Generator().manual_seed(0)
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
                weight = normal(width, dtype=dtype)
                r, y = normal(2, 3, width, dtype=residual), normal(2, 3, width, dtype=dtype)
                for got, want in zip(
                    rms_norm_triton.add_rms_norm(r, y, weight, 1e-5),
                    rms_norm.add_rms_norm(r, y, weight, 1e-5),
                    strict=True,
                ):
                    same(got, want)
            for groups in {1, 2 if width % 2 == 0 else 1}:
                x, weight = normal(2, 3, width, dtype=dtype), normal(width, dtype=dtype)
                got = rms_norm_triton.grouped_rms_norm(x, weight, groups, 1e-5)
                same(got, rms_norm.grouped_rms_norm(x, weight, groups, 1e-5))
            h = normal(2, 3, 2 * width, dtype=dtype)
            same(swiglu_triton.swiglu(h), swiglu.swiglu(h.float()).to(dtype))
        for heads, dim, n in ((4, 12, 6), (3, 70, 18), (16, 112, 56), (2, 8, 1)):
            q = normal(2, 5, 3, heads, dim, dtype=dtype).unbind(-3)[1]  # a view into Wqkv's output
            angles = normal(2, 5, n)
            for x, a in ((q, angles), (q[:, 0], angles[:, 0])):
                same(rotary_triton.rotary(x, a.cos(), a.sin()), rotary.rotary(x, a.cos(), a.sin()))
    assert swiglu_triton.swiglu(normal(0, 8)).numel() == 0
    assert rotary_triton.rotary(normal(0, 2, 4), normal(0, 2), normal(0, 2)).numel() == 0
    print(seen)


if __name__ == "__main__":
    main()
