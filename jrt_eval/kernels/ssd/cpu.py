"""The recurrence of Mamba-2 on the CPU, by the compiled kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import DTYPES, address, learns, single, step_on_views
from jrt_eval.kernels.ssd import reference, schema

_c: Any = compiled.module()
_threads = torch.get_num_threads


def _view(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else (x.data_ptr(), *x.stride())


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
    batch, length, heads, dim = x.shape
    groups, states = b.shape[2:]
    y = x.new_empty(x.shape)
    final = x.new_empty((batch, heads, dim, states), dtype=torch.float32)
    a, d, dt_bias, state = a.to(torch.float32).contiguous(), single(d), single(dt_bias), single(state)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    if final.numel():
        _c.ssd(
            _view(x), _view(z), _view(dt), _view(b), _view(c), a.data_ptr(), address(d), address(dt_bias), address(state),
            final.data_ptr(), y.data_ptr(), address(lengths), batch, length, heads, dim, states, groups, dt_min, dt_max,
            d is not None and d.dim() == 2, softplus, DTYPES[x.dtype], _threads(), False,
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
    batch, heads, dim = x.shape
    groups, states = b.shape[1:]
    y = x.new_empty((batch, heads, dim))
    a, d, dt_bias = a.to(torch.float32).contiguous(), single(d), single(dt_bias)
    if y.numel():
        gate = None if z is None else _view(z[:, None])
        _c.ssd(
            _view(x[:, None]), gate, _view(dt[:, None]), _view(b[:, None]), _view(c[:, None]), a.data_ptr(), address(d),
            address(dt_bias), state.data_ptr(), state.data_ptr(), y.data_ptr(), 0, batch, 1, heads, dim, states, groups,
            dt_min, dt_max, d is not None and d.dim() == 2, softplus, DTYPES[x.dtype], _threads(), True,
        )  # fmt: skip
    if torch.is_grad_enabled():
        increment_version(state)
    return y


schema.ssd.implement("CPU", _ssd)
schema.ssd_step.implement("CPU", _ssd_step)


def ssd(
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
    form = reference.ssd if learns(x, dt, a, b, c, d, z, dt_bias, state) else schema.ssd.call
    y, final = form(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus, dt_min, dt_max)
    return y, final


def ssd_step(
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
    if torch.compiler.is_compiling():
        y: Tensor = schema.ssd_step.call(x, dt, a, b, c, d, z, dt_bias, state, softplus, dt_min, dt_max)
        return y
    run = partial(_ssd_step, softplus=softplus, dt_min=dt_min, dt_max=dt_max)
    return step_on_views(run, slice(8, 9), x, dt, a, b, c, d, z, dt_bias, state)
