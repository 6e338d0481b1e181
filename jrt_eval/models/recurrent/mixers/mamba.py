"""The mixer of Mamba (arXiv 2312.00752), and FalconMamba's.

    [u; z] = in_proj(x);  u = silu(conv(u));  [dt; B; C] = x_proj(u);  dt = softplus(dt_proj(dt))
    h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t;  y = out_proj((C . h + D u) silu(z))

FalconMamba normalises dt, B and C by their root mean square, without weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.kernels.arguments import learns
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, no_autocast
from jrt_eval.models.recurrent.reading import Section

LARGEST_STATE, LARGEST_KERNEL, LARGEST_EXPAND = 2**16, 4096, 1024


class MambaState(NamedTuple):
    """The last inputs of the convolution (batch, width - 1, channels), and h (batch, ..., states); both float32."""

    conv: Tensor
    h: Tensor


@dataclass(frozen=True)
class MambaConfig(MixerConfig):
    kind: ClassVar[str] = "mamba"

    inner: int  # channels
    states: int = 16
    width: int = 4  # of the convolution
    rank: int = 1  # of dt's projection
    bias: bool = False  # of in_proj and out_proj
    conv_bias: bool = True
    norm_eps: float | None = None  # FalconMamba's norms of dt, B and C

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> MambaConfig:
        """From mamba_ssm's `ssm_cfg`."""
        rank = -(-facts.d_model // 16)
        if section.get("dt_rank", "auto") != "auto":
            rank = section.size("dt_rank")
        return cls(
            inner=int(section.number("expand", 2, 0, LARGEST_EXPAND, above=True) * facts.d_model),
            states=section.integer("d_state", 16, high=LARGEST_STATE),
            width=section.integer("d_conv", 4, high=LARGEST_KERNEL),
            rank=rank,
            bias=section.flag("bias", False),
            conv_bias=section.flag("conv_bias", True),
        )

    def build(self, d_model: int) -> Mixer:
        return Mamba(d_model, self)


class DecayRates(nn.Module):
    """A = -exp(A_log), kept until A_log changes."""

    A_log: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[tuple[int, int, torch.dtype], Tensor] | None = None

    def rates(self) -> Tensor:
        log = self.A_log
        if torch.compiler.is_compiling() or log.is_inference() or learns(log):
            return -log.float().exp()
        key = log.data_ptr(), log._version, log.dtype
        if self._kept is None or self._kept[0] != key or self._kept[1].device != log.device:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = key, -log.float().exp()
        return self._kept[1]


class Mamba(Mixer, DecayRates):
    """State: `MambaState`, with h (batch, channels, states)."""

    def __init__(self, dim: int, config: MambaConfig) -> None:
        super().__init__()
        inner = config.inner
        self.states, self.rank, self.norm_eps = config.states, config.rank, config.norm_eps
        self.in_proj = nn.Linear(dim, 2 * inner, bias=config.bias)
        self.conv1d = nn.Conv1d(inner, inner, config.width, groups=inner, bias=config.conv_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, self.states))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, dim, bias=config.bias)

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt without its bias, B and C."""
        dt, b, c = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        if self.norm_eps is not None:
            dt, b, c = (F.rms_norm(t.float(), t.shape[-1:], eps=self.norm_eps).to(t.dtype) for t in (dt, b, c))
        return F.linear(dt, self.dt_proj.weight), b, c

    def forward(self, x: Tensor, state: MambaState | None, call: Call) -> tuple[Tensor, MambaState]:
        u, z = self.in_proj(x).chunk(2, -1)
        held, h = (None, None) if state is None else state
        weight, bias, lengths, backend = self.conv1d.weight, self.conv1d.bias, call.lengths, call.backend
        with no_autocast(x):
            u, conv = kernels.short_conv(u, weight, bias, held, lengths=lengths, backend=backend)
        dt, b, c = self._projected(u)
        with no_autocast(x):
            y, h = kernels.selective_scan(
                u,
                dt,
                self.rates(),
                b,
                c,
                self.D,
                z,
                self.dt_proj.bias,
                h,
                softplus=True,
                lengths=lengths,
                backend=backend,
            )
        return self.out_proj(y), MambaState(conv, h)

    def step(self, x: Tensor, state: MambaState, call: Call) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        with no_autocast(x):
            u = kernels.short_conv_step(u, self.conv1d.weight, self.conv1d.bias, state.conv, backend=call.backend)
        dt, b, c = self._projected(u)
        with no_autocast(x):
            y = kernels.selective_scan_step(
                u, dt, self.rates(), b, c, state.h, self.D, z, self.dt_proj.bias, softplus=True, backend=call.backend
            )
        out: Tensor = self.out_proj(y)
        return out

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        inner, width = self.conv1d.in_channels, self.conv1d.kernel_size[0]
        return StateBytes(recurrent=inner * self.states * 4, convolution=(width - 1) * inner * 4)
