"""The parts that all layers share: norms, the MLP, rotary positions.

On a GPU without gradients, Triton kernels compute them (`jrt_eval.kernels.rms_norm`, `swiglu`, `rotary`). PyTorch makes three to ten
passes over the tensors, which take about a quarter of the time of the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.kernels.rms_norm import add_rms_norm
from jrt_eval.kernels.swiglu import swiglu


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32; the result has the weights' dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return y.to(self.weight.dtype)


class LayerNorm(nn.Module):
    """Layer norm, computed in float32; the result has the weights' dtype. Used by configs without `rms_norm`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.weight.dtype)


def add_norm(r: Tensor, y: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """r + y and norm(r + y)."""
    if isinstance(norm, RMSNorm):
        return add_rms_norm(r, y, norm.weight, norm.eps)
    r = r + y
    return r, norm(r)


_GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu, "glu": torch.sigmoid}
_TANH = partial(F.gelu, approximate="tanh")
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_approx", "gelu_pytorch_tanh"), _TANH),
    "relu": F.relu,
    "sqrelu": lambda x: F.relu(x).square(),
}


class MLP(nn.Module):
    """`fc2(act(g) * u)`, where `fc1` gives u in its first half and the gate g in its second; or plain `fc2(act(fc1))`."""

    def __init__(self, dim: int, inner: int, activation: str, fc1_bias: bool, fc2_bias: bool) -> None:
        super().__init__()
        self.gated = activation in _GATES
        self.act = _GATES[activation] if self.gated else _PLAIN[activation]
        self.fc1 = nn.Linear(dim, 2 * inner if self.gated else inner, bias=fc1_bias)
        self.fc2 = nn.Linear(inner, dim, bias=fc2_bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            plain: Tensor = self.fc2(self.act(self.fc1(x)))
            return plain
        h = self.fc1(x)
        if self.act is F.silu:
            h = swiglu(h)
        else:
            up, gate = h.chunk(2, -1)
            h = self.act(gate) * up
        y: Tensor = self.fc2(h)
        return y


def rotary_angles(positions: Tensor, rotary_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (batch, length, ceil(rotary_dim / 2)) at `positions` (batch, length), float32.

    An odd rotary_dim r has ceil(r / 2) frequencies base^(-arange(0, r, 2) / r), so r + 1 dims rotate.
    """
    exponent = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32) / rotary_dim
    angles = positions[..., None].float() * (1.0 / base**exponent)
    return angles.cos(), angles.sin()
