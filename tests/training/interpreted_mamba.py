"""Mamba's Triton kernels in Triton's interpreter, compared with PyTorch in float64. Run by test_kernels.py."""

from __future__ import annotations

import torch
from torch import Tensor

from jrt_eval.kernels.selective_scan import reference as scan
from jrt_eval.kernels.selective_scan import triton as scan_triton
from jrt_eval.kernels.short_conv import triton as conv_triton
from jrt_eval.training.mamba import MambaMixer


def results(form: object, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = form(*inputs)  # type: ignore[operator]
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]


def by_torch(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return scan.selective_scan(x, dt, a, b, c, torch.zeros(x.shape[-1], dtype=x.dtype))


def convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mixer = MambaMixer(1, 4, weight.shape[-1], 1, 1)
    parameters = {"conv1d.weight": weight, "conv1d.bias": bias}
    mixer.forward = mixer._convolved  # type: ignore[method-assign]
    y: Tensor = torch.func.functional_call(mixer, parameters, (u,))
    return y


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
        got = results(scan_triton.TritonScan.apply, inputs)
        expected = results(by_torch, [t.double() for t in inputs])
        found.append(difference(got, expected))
    print(f"worst {max(found):.1e}")
    assert all(one < 1e-5 for one in found)


if __name__ == "__main__":
    main()
