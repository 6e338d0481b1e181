"""Mamba's short causal convolution with its SiLU as Triton kernels: one pass forwards, two backwards.

As PyTorch operations it is a dozen passes over the activations forwards and two dozen backwards.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS = 16, 128  # per program


@triton.jit
def _forward(
    u, weight, bias, y, length, channels, stride, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = at < channels
    pre = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32) + tl.load(bias + at, mask=inside, other=0.0)[None, :]
    for w in tl.static_range(W):
        s = t + (w - (W - 1))
        ok = ((s >= 0) & (s < length))[:, None] & inside[None, :]
        us = tl.load(u + (row * length + s)[:, None] * stride + at[None, :], mask=ok, other=0.0)
        pre += us * tl.load(weight + at * W + w, mask=inside, other=0.0)[None, :]
    to = (row * length + t)[:, None] * channels + at[None, :]
    tl.store(y + to, pre * tl.sigmoid(pre), mask=(t < length)[:, None] & inside[None, :])


@triton.jit
def _backward_pre(
    u, weight, bias, dy, dpre, parts, length, channels, stride,
    W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The gradient before SiLU, and this program's part of the weight's and (behind it) the bias's."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = at < channels
    pre = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32) + tl.load(bias + at, mask=inside, other=0.0)[None, :]
    for w in tl.static_range(W):
        s = t + (w - (W - 1))
        ok = ((s >= 0) & (s < length))[:, None] & inside[None, :]
        us = tl.load(u + (row * length + s)[:, None] * stride + at[None, :], mask=ok, other=0.0)
        pre += us * tl.load(weight + at * W + w, mask=inside, other=0.0)[None, :]
    here = (t < length)[:, None] & inside[None, :]
    to = (row * length + t)[:, None] * channels + at[None, :]
    gate = tl.sigmoid(pre)
    g = tl.load(dy + to, mask=here, other=0.0) * gate * (1 + pre * (1 - gate))
    tl.store(dpre + to, g, mask=here)
    part = parts + (row * tl.num_programs(1) + tl.program_id(1)) * (W + 1) * channels + at
    for w in tl.static_range(W):
        s = t + (w - (W - 1))
        ok = ((s >= 0) & (s < length))[:, None] & inside[None, :]
        us = tl.load(u + (row * length + s)[:, None] * stride + at[None, :], mask=ok, other=0.0)
        tl.store(part + w * channels, tl.sum(us * g, 0), mask=inside)
    tl.store(part + W * channels, tl.sum(g, 0), mask=inside)


@triton.jit
def _backward_input(weight, dpre, du, length, channels, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = at < channels
    total = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    for w in tl.static_range(W):
        s = t + (W - 1 - w)
        ok = (s < length)[:, None] & inside[None, :]
        g = tl.load(dpre + (row * length + s)[:, None] * channels + at[None, :], mask=ok, other=0.0)
        total += g * tl.load(weight + at * W + w, mask=inside, other=0.0)[None, :]
    to = (row * length + t)[:, None] * channels + at[None, :]
    tl.store(du + to, total, mask=(t < length)[:, None] & inside[None, :])


class TritonConv(torch.autograd.Function):
    """SiLU(conv(u) + bias): u (batch, length, channels), weight (channels, 1, width), bias (channels,), all float32."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, length, channels = u.shape
        if u.stride(2) != 1 or u.stride(0) != length * u.stride(1):
            u = u.contiguous()
        weight, bias = weight.contiguous(), bias.contiguous()
        y = u.new_empty(batch, length, channels)
        _forward[_grid(u)](u, weight, bias, y, length, channels, u.stride(1), **_shape(weight))
        ctx.save_for_backward(u, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, weight, bias = ctx.saved_tensors
        length, channels = u.shape[1:]
        dy = dy.contiguous()
        grid = _grid(u)
        width = weight.shape[-1]
        dpre, du = torch.empty_like(dy), torch.empty_like(dy)
        parts = u.new_empty(grid[0] * grid[1], width + 1, channels)
        _backward_pre[grid](u, weight, bias, dy, dpre, parts, length, channels, u.stride(1), **_shape(weight))
        _backward_input[grid](weight, dpre, du, length, channels, **_shape(weight))
        sums = parts.sum(0)
        return du, sums[:width].T.unsqueeze(1), sums[width]


def _grid(u: Tensor) -> tuple[int, int, int]:
    batch, length, channels = u.shape
    return batch, triton.cdiv(length, TOKENS), triton.cdiv(channels, CHANNELS)


def _shape(weight: Tensor) -> dict[str, int]:
    return {"W": weight.shape[-1], "TOKENS": TOKENS, "CHANNELS": CHANNELS, "num_warps": 4}
