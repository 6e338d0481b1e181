"""The selective scan on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.library import decode_step, kernel_or_reference
from jrt_eval.kernels.selective_scan import reference, schema

_c: Any = compiled.module()
_threads = torch.get_num_threads


def _selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    (batch, _, channels), states = x.shape, a.shape[1]
    y = x.new_empty(x.shape)
    final = x.new_empty((batch, channels, states), dtype=torch.float32)
    a, d, dt_bias, state = a.to(torch.float32).contiguous(), single(d), single(dt_bias), single(state)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    if final.numel():
        _c.selective_scan(
            x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, lengths=lengths, softplus=softplus,
            y=y, state_out=final, threads=_threads(),
        )  # fmt: skip
    return y, final


def _selective_scan_step(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    softplus: bool,
) -> Tensor:
    y = x.new_empty(x.shape)
    a, d, dt_bias = a.to(torch.float32).contiguous(), single(d), single(dt_bias)
    if y.numel():
        _c.selective_scan_step(
            x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, lengths=None, softplus=softplus,
            y=y, state_out=state, threads=_threads(),
        )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


schema.selective_scan.implement("CPU", _selective_scan)
schema.selective_scan_step.implement("CPU", _selective_scan_step)

selective_scan = kernel_or_reference(schema.selective_scan, reference.selective_scan)
selective_scan_step = decode_step(schema.selective_scan_step, _selective_scan_step, slice(8, 9))
