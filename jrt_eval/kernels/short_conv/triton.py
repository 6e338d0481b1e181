"""The short convolution as Triton kernels, in every form, without gradients: a program computes a tile of tokens and channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns
from jrt_eval.kernels.library import decode_step
from jrt_eval.kernels.short_conv import schema, shared
from jrt_eval.kernels.triton_common import token_count

TOKENS, CHANNELS = 32, 128  # per program


@triton.jit
def _input(
    x, state_in, row, s, at, length, channels, inside, x_row, x_token, x_channel, W: tl.constexpr, STATE: tl.constexpr
):
    """Inputs (tokens, channels) of the tokens s; negative ones are the state's."""
    u = tl.load(
        x + row * x_row + s[:, None] * x_token + at[None, :] * x_channel,
        mask=((s >= 0) & (s < length))[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    if STATE:
        before = (s < 0)[:, None] & inside[None, :]
        u += tl.load(
            state_in + (row * (W - 1) + W - 1 + s)[:, None] * channels + at[None, :], mask=before, other=0.0
        ).to(tl.float32)
    return u


@triton.jit
def _forward(
    x, gate, weight, bias, state_in, lengths, y, state_out, length, channels,
    x_row, x_token, x_channel, gate_row, gate_token, gate_channel, weight_channel, weight_tap,
    W: tl.constexpr, PAST: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr, LENGTHS: tl.constexpr,
    SILU: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = at < channels
    here = (t < length)[:, None] & inside[None, :]
    z = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    if BIAS:
        z += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    for w in tl.static_range(W):
        s = tl.where(t < length, t + (w - (W - 1)), 0)
        u = _input(x, state_in, row, s, at, length, channels, inside, x_row, x_token, x_channel, W, STATE)
        z += u * tl.load(weight + at * weight_channel + w * weight_tap, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    if GATE:
        place = row * gate_row + t[:, None] * gate_token + at[None, :] * gate_channel
        z *= tl.load(gate + place, mask=here, other=0.0).to(tl.float32)
    tl.store(y + (row * length + t)[:, None] * channels + at[None, :], z, mask=here)
    if W > 1 and tl.program_id(1) == 0:
        count = token_count(lengths, row, length, LENGTHS)
        i = tl.arange(0, PAST)
        # Tokens before the state's own are never asked for: count - (W - 1) + i >= -(W - 1).
        before = tl.where(i < W - 1, count - (W - 1) + i, 0)
        last = _input(x, state_in, row, before, at, length, channels, inside, x_row, x_token, x_channel, W, STATE)
        kept = (i < W - 1)[:, None] & inside[None, :]
        tl.debug_barrier()  # in a decode step the state is read and written here, by different threads
        tl.store(state_out + (row * (W - 1) + i)[:, None] * channels + at[None, :], last, mask=kept)


def _launch(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    last: Tensor,
    lengths: Tensor | None,
    silu: bool,
) -> Tensor:
    batch, length, channels = x.shape
    y = x.new_empty((batch, length, channels))
    width = weight.shape[-1]
    tokens = min(TOKENS, triton.next_power_of_2(max(1, length)))
    grid = (triton.cdiv(channels, CHANNELS), max(1, triton.cdiv(length, tokens)), batch)
    if batch * channels:
        other = x if gate is None else gate
        with torch.cuda.device_of(x):
            _forward[grid](
                x, other, weight, bias, state, lengths, y, last, length, channels, *x.stride(), *other.stride(),
                weight.stride(0), weight.stride(-1), W=width, PAST=triton.next_power_of_2(max(1, width - 1)),
                GATE=gate is not None, BIAS=bias is not None, STATE=state is not None, LENGTHS=lengths is not None,
                SILU=silu, TOKENS=tokens, CHANNELS=CHANNELS, num_warps=4,
            )  # fmt: skip
    return y


def prefill(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    return shared.prefill(_launch, x, gate, weight, bias, state, lengths, silu)


def step(x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """y of one token; the state is updated in place, every program's channels by itself."""
    y = _launch(x[:, None], None if gate is None else gate[:, None], weight, bias, state, state, None, silu)
    if torch.is_grad_enabled():
        increment_version(state)
    return y[:, 0]


if compiled.cuda_missing is not None:  # else the CUDA module registers the operators, and calls the functions above
    schema.short_conv.implement("CUDA", prefill)
    schema.short_conv_step.implement("CUDA", step)


def short_conv(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    if learns(x, gate, weight, bias, state):
        return shared.differentiable(x, gate, weight, bias, state, lengths, silu)
    call = schema.short_conv.call if torch.compiler.is_compiling() else prefill
    y, last = call(x, gate, weight, bias, state, lengths, silu)
    return y, last


short_conv_step = decode_step(schema.short_conv_step, step, slice(4, 5))
