"""The selective scan by the CUDA kernel, for calls that it takes; by Triton or PyTorch for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, single
from jrt_eval.kernels.device import stream
from jrt_eval.kernels.optional import triton_module
from jrt_eval.kernels.selective_scan import reference

_c: Any = compiled.cuda_module()

MOST_STATES = 16
CHANNELS = 128  # of a block
FILL = 512  # blocks that keep a GPU busy: more segments cost more than they win
SHORTEST = 128  # tokens of a segment, at least


def _paired(x: Tensor) -> bool:
    """Whether two adjacent channels can be loaded at once."""
    even = x.stride(-1) == 1 and x.stride(0) % 2 == 0 and x.stride(1) % 2 == 0
    return even and x.data_ptr() % (2 * x.element_size()) == 0


def takes(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, z: Tensor | None) -> bool:
    """Whether the CUDA kernel computes this call."""
    small = a.shape[1] <= MOST_STATES and b.shape[2] == 1 and x.shape[2] % 2 == 0 and x.numel() > 0
    adjacent = b.stride(-1) == 1 and c.stride(-1) == 1
    return small and adjacent and all(_paired(t) for t in (x, dt, z) if t is not None)


def segments_of(length: int, blocks: int) -> int:
    """Into how many parts a row is cut: one where `blocks` fill the GPU without a cut."""
    return max(1, min(-(-FILL // blocks), length // SHORTEST))


def selective_scan(
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
    if torch.compiler.is_compiling() or learns(x, dt, a, b, c, d, z, dt_bias, state) or not takes(x, dt, a, b, c, z):
        other: Any = triton_module("jrt_eval.kernels.selective_scan.triton") or reference
        y, final = other.selective_scan(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus)
        return y, final
    a, d, dt_bias, state = a.to(torch.float32).contiguous(), *map(single, (d, dt_bias, state))
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    batch, length, channels = x.shape
    states = a.shape[1]
    segments = segments_of(length, batch * -(-channels // CHANNELS))
    each = -(-length // segments)
    segments = -(-length // each)
    y = x.new_empty((batch, length, channels))
    final = x.new_empty((batch, channels, states), dtype=torch.float32)
    ends = sums = None
    if segments > 1:
        ends = x.new_empty((batch, segments, channels, states), dtype=torch.float32)
        sums = x.new_empty((batch, segments, channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _c.selective_scan(
            x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, lengths=lengths, softplus=softplus, y=y,
            state_out=final, ends=ends, sums=sums, segments=segments, segment_length=each, stream=stream(x),
        )  # fmt: skip
    return y, final
