"""The selective scan of Mamba (arXiv 2312.00752, section 3.2) in PyTorch, on any device and differentiable.

    dt_t = softplus(dt_t + dt_bias);  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t;  y_t = (C_t . h_t + D x_t) silu(z_t)

Shapes are those of the public function; B and C are (batch, length, groups, states). A block of tokens is cut into chunks that are
walked at once, token by token, and then joined, so that memory does not grow with the length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.arguments import transforming

BLOCK = 1024  # tokens whose states exist at the same time
CHUNK = 32


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
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype, (batch, length, channels) = x.dtype, x.shape
    x, step = x.to(wide), time_step(dt, dt_bias, softplus, wide)
    a, b, c = a.to(wide), b.to(wide), c.to(wide)
    padding = None
    if lengths is not None:  # a time step of 0 leaves the state as it is
        padding = torch.arange(length, device=x.device) >= lengths.to(x.device)[:, None]
        x, step = (t.masked_fill(padding[..., None], 0) for t in (x, step))
        b, c = (t.masked_fill(padding[..., None, None], 0) for t in (b, c))
    h = x.new_zeros(batch, channels, a.shape[1]) if state is None else state.to(wide)
    per_group = channels // b.shape[2]
    ys = []
    for start in range(0, length, BLOCK):
        at = slice(start, start + BLOCK)
        decay = torch.exp(step[:, at, :, None] * a)  # (batch, block, channels, states)
        drive = (step[:, at] * x[:, at])[..., None] * b[:, at].repeat_interleave(per_group, 2)
        drive = torch.cat([drive[:, :1] + decay[:, :1] * h[:, None], drive[:, 1:]], 1)
        states = _recurrence(decay, drive)
        ys.append((states * c[:, at].repeat_interleave(per_group, 2)).sum(-1))
        h = states[:, -1]
    y = torch.cat(ys, 1) if ys else x
    if d is not None:
        y = y + d.to(wide) * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    if padding is not None:
        y = y.masked_fill(padding[..., None], 0)
    return y.to(dtype), h.clone()


def time_step(dt: Tensor, bias: Tensor | None, softplus: bool, wide: torch.dtype) -> Tensor:
    """dt as the recurrence uses it, in the dtype `wide`; the last dimension of dt is that of the bias."""
    step = dt.to(wide)
    if bias is not None:
        step = step + bias.to(wide)
    return F.softplus(step) if softplus else step


@torch.no_grad()
def selective_scan_step(
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
    wide = state.dtype
    per_group = x.shape[1] // b.shape[1]
    step = time_step(dt, dt_bias, softplus, wide)
    now = x.to(wide)
    b, c = (t.to(wide).repeat_interleave(per_group, 1) for t in (b, c))
    state.mul_(torch.exp(step[..., None] * a.to(wide))).addcmul_((step * now)[..., None], b)
    y = (state * c).sum(-1)
    if d is not None:
        y = y + d.to(wide) * now
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)


def _recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t along dimension 1, from h_0 = 0; both (batch, length, ...)."""
    if transforming():  # which a custom autograd function has no rules for
        return _scan(decay, drive)
    h: Tensor = _Recurrence.apply(decay, drive)  # type: ignore[no-untyped-call]
    return h


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        h = _scan(decay, drive)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        decay, h = ctx.saved_tensors
        # The adjoint runs backwards: g_t = grad_t + decay_{t+1} g_{t+1}.
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        g = _scan(later.flip(1), grad.flip(1)).flip(1)
        earlier = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return g * earlier, g


def _scan(decay: Tensor, drive: Tensor) -> Tensor:
    length = decay.shape[1]
    count = -(-length // CHUNK)
    pad = [0, 0] * (decay.dim() - 2) + [0, count * CHUNK - length]
    decay = F.pad(decay, pad).unflatten(1, (count, CHUNK))
    drive = F.pad(drive, pad).unflatten(1, (count, CHUNK))
    states, products = [drive[:, :, 0]], [decay[:, :, 0]]
    for t in range(1, CHUNK):
        states.append(torch.addcmul(drive[:, :, t], decay[:, :, t], states[-1]))
        products.append(products[-1] * decay[:, :, t])
    h, product = torch.stack(states, 2), torch.stack(products, 2)
    carry = torch.zeros_like(h[:, 0, 0])
    carries = []
    for chunk in range(count):
        carries.append(carry)
        carry = h[:, chunk, -1] + product[:, chunk, -1] * carry
    h.addcmul_(product, torch.stack(carries, 1)[:, :, None])
    return h.flatten(1, 2)[:, :length]
