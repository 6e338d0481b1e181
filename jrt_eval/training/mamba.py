"""Mamba for training: the keys of mamba_ssm's files, and the arithmetic of transformers' MambaForCausalLM.

`--model jrt` runs the result through transformers; here the scan is differentiable and fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.kernels.optional import triton_module
from jrt_eval.kernels.selective_scan.reference import selective_scan

TRITON = "jrt_eval.kernels.short_conv.triton"


class _Norm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class MambaMixer(nn.Module):
    """in_proj -> depthwise causal convolution, SiLU -> selective scan, gated by SiLU(z) -> out_proj."""

    def __init__(self, dim: int, states: int, width: int, expand: int, rank: int) -> None:
        super().__init__()
        inner = expand * dim
        self.states, self.rank = states, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, width, groups=inner, padding=width - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def reset(self) -> None:
        """Initialise the step sizes log-uniformly between 0.001 and 0.1, as mamba_ssm does."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(torch.rand_like(self.dt_proj.bias) * (high - low) + low).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        u = self._convolved(u)
        dt, b, c = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.float64 if self.A_log.dtype == torch.float64 else torch.float32
            dt = F.softplus(F.linear(dt.to(wide), self.dt_proj.weight.to(wide), self.dt_proj.bias.to(wide)))
            y = selective_scan(u.to(wide), dt, -self.A_log.to(wide).exp(), b, c, self.D)
        out: Tensor = self.out_proj(y.to(z.dtype) * F.silu(z))
        return out

    def _convolved(self, u: Tensor) -> Tensor:
        weight, bias = self.conv1d.weight, self.conv1d.bias
        assert bias is not None
        single = u.dtype == weight.dtype == torch.float32
        if u.device.type == "cuda" and single and (kernels := triton_module(TRITON)) is not None:
            y: Tensor = _fused(kernels, u, weight, bias)
            return y
        length, width = u.shape[1], weight.shape[-1]
        before = F.pad(u, (0, 0, width - 1, 0))
        weight = weight.to(u.dtype)
        taps = [before[:, w : w + length] * weight[:, 0, w] for w in range(width)]
        return F.silu(sum(taps[1:], taps[0]) + bias.to(u.dtype))


@torch.compiler.disable  # torch.compile leaves these kernels as they are
def _fused(kernels: Any, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y: Tensor = kernels.TritonConv.apply(u, weight, bias)
    return y


class _Layer(nn.Module):
    def __init__(self, dim: int, mixer: MambaMixer) -> None:
        super().__init__()
        self.norm = _Norm(dim)
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mixer(self.norm(x))
        return y


class MambaLM(nn.Module):
    """A model from a mamba_ssm config.json; its forward pass in training is `logits(hidden(ids)[0])`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        ssm = dict(config.get("ssm_cfg") or {})
        dim, layers = int(config["d_model"]), int(config["n_layer"])
        multiple = int(config.get("pad_vocab_size_multiple") or 1)
        rows = -(-int(config["vocab_size"]) // multiple) * multiple
        rank = ssm.get("dt_rank", "auto")
        rank = -(-dim // 16) if rank == "auto" else int(rank)
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(rows, dim)
        self.backbone.layers = nn.ModuleList(
            _Layer(
                dim,
                MambaMixer(dim, ssm.get("d_state", 16), ssm.get("d_conv", 4), ssm.get("expand", 2), rank),
            )
            for _ in range(layers)
        )
        self.backbone.norm_f = _Norm(dim)
        self.lm_head = nn.Linear(dim, rows, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight  # type: ignore[assignment]

    def reset(self) -> None:
        """mamba_ssm's initialisation: embeddings with std 0.02, projections to the residual scaled by 1/sqrt(n_layer)."""
        embedding, layers = self.backbone.embedding, self.backbone.layers
        assert isinstance(embedding, nn.Embedding)
        assert isinstance(layers, nn.ModuleList)
        nn.init.normal_(embedding.weight, std=0.02)
        for layer in layers:
            mixer = layer.mixer
            assert isinstance(mixer, MambaMixer)
            mixer.reset()
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(len(layers))

    def hidden(self, input_ids: Tensor) -> tuple[Tensor, None]:
        """The input of the head, (batch, length, d), and no state."""
        x: Tensor = self.backbone.embedding(input_ids).float()  # type: ignore[operator]
        for layer in self.backbone.layers:  # type: ignore[union-attr]
            x = layer(x)
        return self.backbone.norm_f(x), None  # type: ignore[operator]

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits from the output of `hidden`, padding rows of the vocabulary included."""
        out: Tensor = self.lm_head(x)
        return out.float()
