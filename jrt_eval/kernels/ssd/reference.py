"""The recurrence of Mamba-2 (arXiv 2405.21060) in PyTorch, on any device and differentiable.

    dt_t = clamp(softplus(dt_t + dt_bias));  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = (h_t C_t + D x_t) silu(z_t)

Shapes are those of the public function. Within a chunk the recurrence is a masked matrix product (section 6 of the paper); between
chunks the state carries what came before, so that memory does not grow with the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.layout import weighted_sum
from jrt_eval.kernels.selective_scan.reference import time_step

CHUNK = 64


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
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype, (batch, length, heads, dim) = x.dtype, x.shape
    x, b, c, a = x.to(wide), b.to(wide), c.to(wide), a.to(wide)
    step = time_step(dt, dt_bias, softplus, wide).clamp(dt_min, dt_max)
    padding = None
    if lengths is not None:  # a time step of 0 leaves the state as it is
        padding = (torch.arange(length, device=x.device) >= lengths.to(x.device)[:, None])[..., None]
        step = step.masked_fill(padding, 0)
        x, b, c = (t.masked_fill(padding[..., None], 0) for t in (x, b, c))
    h = x.new_zeros(batch, heads, dim, b.shape[3]) if state is None else state.to(wide)
    per_group = heads // b.shape[2]
    x, b, c = x.transpose(1, 2), b.transpose(1, 2), c.transpose(1, 2)  # (batch, heads or groups, length, .)
    step = step.transpose(1, 2)
    ys = []
    for start in range(0, length, CHUNK):
        at = slice(start, start + CHUNK)
        bc, cc = b[:, :, at], c[:, :, at]
        scores = (cc @ bc.transpose(-1, -2)).repeat_interleave(per_group, 1)  # (batch, heads, chunk, chunk)
        bc, cc = bc.repeat_interleave(per_group, 1), cc.repeat_interleave(per_group, 1)
        driven = step[:, :, at, None] * x[:, :, at]
        # float64: the difference of two sums is needed to the last bit, however large they are
        decays = (step[:, :, at] * a[:, None]).double().cumsum(-1)
        later = torch.ones(decays.shape[-1], decays.shape[-1], dtype=torch.bool, device=x.device).triu(1)
        between = (decays[..., :, None] - decays[..., None, :]).masked_fill(later, -torch.inf).to(wide).exp()
        within = weighted_sum((scores * between).masked_fill(later, 0), driven, ~later)
        ys.append(within + decays.to(wide).exp()[..., None] * (cc @ h.transpose(-1, -2)))
        left = (decays[..., -1:] - decays).to(wide).exp()[..., None]
        h = decays[..., -1:, None].to(wide).exp() * h + (left * driven).transpose(-1, -2) @ bc
    y = torch.cat(ys, 2) if ys else x
    if d is not None:
        y = y + (d[:, None, None] if d.dim() == 1 else d[:, None]).to(wide) * x
    y = y.transpose(1, 2)
    if z is not None:
        y = y * F.silu(z.to(wide))
    if padding is not None:
        y = y.masked_fill(padding[..., None], 0)
    return y.to(dtype), h.clone()


@torch.no_grad()
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
    wide = state.dtype
    per_group = x.shape[1] // b.shape[1]
    step = time_step(dt, dt_bias, softplus, wide).clamp(dt_min, dt_max)
    now = x.to(wide)
    b, c = (t.to(wide).repeat_interleave(per_group, 1) for t in (b, c))
    state.mul_(torch.exp(step * a.to(wide))[..., None, None])
    state.addcmul_((step[..., None] * now)[..., None], b[:, :, None])
    y = (state @ c[..., None])[..., 0]
    if d is not None:
        y = y + (d[:, None] if d.dim() == 1 else d).to(wide) * now
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)
