"""The Triton kernels that train Mamba in Triton's interpreter, against the references in float64. Run by test_kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels.selective_scan import reference as scan
from jrt_eval.kernels.selective_scan import triton_training as scan_triton
from jrt_eval.kernels.short_conv import reference as conv
from jrt_eval.kernels.short_conv import triton_training as conv_triton


def results(form: Any, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = form(*inputs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]


def by_torch(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return scan.selective_scan(x, dt, a, b[:, :, None], c[:, :, None], None, None, None, None, None, False)


def convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv.short_conv(u, None, weight, bias, None, None, True)[0]


def difference(mine: list[Tensor], theirs: list[Tensor]) -> float:
    pairs = zip(mine, theirs, strict=True)
    return float(torch.stack([(a - b).norm() / b.norm().clamp(min=1e-9) for a, b in pairs]).max())


def main() -> None:
    found = []
    for length, channels, width in ((1, 5, 4), (3, 130, 4), (37, 5, 4), (33, 129, 3)):
        both = torch.randn(2, length, 2 * channels)  # one half of a wider tensor, as a projection leaves it
        inputs = [torch.randn(channels, 1, width), torch.randn(channels)]
        got = results(lambda b, *r: conv_triton.TritonConv.apply(b.chunk(2, -1)[1], *r), [both, *inputs])
        wide = [t.double() for t in (both, *inputs)]
        found.append(difference(got, results(lambda b, *r: convolution(b.chunk(2, -1)[1], *r), wide)))
    cases = [(4, 1), (8, 32), (4, 45), (8, 77), (16, 77), (4, 515)]  # 515 tokens have longer segments
    for number, (states, length) in enumerate(cases):
        torch.manual_seed(number)
        channels = 512 // states + 3 if number == 2 else 5
        rows = 1 if length > 500 else 2
        x, dt = torch.randn(rows, length, channels), torch.randn(rows, length, channels).exp() * 0.1
        b, c = torch.randn(rows, length, states), torch.randn(rows, length, states)
        inputs = [x, dt, -torch.randn(channels, states).exp(), b, c]
        got = results(lambda *given: scan_triton.TritonScan.apply(*given)[0], inputs)
        wide = [t.double() for t in inputs]
        found.append(difference(got, results(lambda *given: by_torch(*given)[0], wide)))
        state = scan_triton.TritonScan.apply(*inputs)[1]
        found.append(difference([state], [by_torch(*wide)[1]]))
        d, z, bias = torch.randn(channels), torch.randn_like(x), torch.randn(channels)
        rest = [inputs[2], b[:, :, None], c[:, :, None], d, z, bias]
        got = results(lambda *given: scan_triton.trainable(*given, True)[0], [x, dt, *rest])
        wide = [t.double() for t in (x, dt, *rest)]
        found.append(difference(got, results(lambda *given: scan.selective_scan(*given, None, None, True)[0], wide)))
    print(f"worst {max(found):.1e}")
    assert all(one < 2e-5 for one in found)


if __name__ == "__main__":
    main()
