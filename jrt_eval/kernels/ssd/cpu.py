"""The recurrence of Mamba-2 on the CPU, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import single
from jrt_eval.kernels.library import decode_step, kernel_or_reference
from jrt_eval.kernels.ssd import reference, schema

_c: Any = compiled.module()
_threads = torch.get_num_threads


def _ssd(
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
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, dim = x.shape
    y = x.new_empty(x.shape)
    final = x.new_empty((batch, heads, dim, b.shape[3]), dtype=torch.float32)
    a, d, dt_bias, state = a.to(torch.float32).contiguous(), single(d), single(dt_bias), single(state)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    if final.numel():
        _c.ssd(
            x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, lengths=lengths, softplus=softplus,
            dt_min=dt_min, dt_max=dt_max, y=y, state_out=final, threads=_threads(),
        )  # fmt: skip
    return y, final


def _ssd_step(
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
    dt_min: float,
    dt_max: float,
) -> Tensor:
    y = x.new_empty(x.shape)
    a, d, dt_bias = a.to(torch.float32).contiguous(), single(d), single(dt_bias)
    if y.numel():
        _c.ssd_step(
            x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, lengths=None, softplus=softplus,
            dt_min=dt_min, dt_max=dt_max, y=y, state_out=state, threads=_threads(),
        )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


schema.ssd.implement("CPU", _ssd)
schema.ssd_step.implement("CPU", _ssd_step)

ssd = kernel_or_reference(schema.ssd, reference.ssd)
ssd_step = decode_step(schema.ssd_step, _ssd_step, slice(8, 9))
