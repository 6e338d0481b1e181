"""Mamba as it is trained: our own model class (jrt_eval.models.recurrent.mamba) with the initial values of mamba_ssm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jrt_eval.models.recurrent.mamba import MambaModel, read_mamba_ssm
from jrt_eval.models.recurrent.mixers.mamba import Mamba


class MambaLM(MambaModel):
    """Built from a config.json in mamba_ssm's form; the training forward is `logits(hidden(ids)[0])`."""

    def __init__(self, config: Mapping[str, Any], *, backend: str = "auto") -> None:
        super().__init__(read_mamba_ssm(config), config, backend=backend)

    def reset(self) -> None:
        """The original's initialisation: embeddings 0.02, projections to the residual scaled by 1/sqrt(n_layer)."""
        nn.init.normal_(self._embeddings.weight, std=0.02)
        for layer in self._layers:
            if isinstance(layer.mixer, Mamba):
                _reset_mixer(layer.mixer)
            nn.init.kaiming_uniform_(layer.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                layer.mixer.out_proj.weight /= math.sqrt(len(self._layers))


@torch.no_grad()
def _reset_mixer(mixer: Mamba) -> None:
    """A = -1, -2, ... in every channel, D = 1, and time steps between 0.001 and 0.1, log-uniform."""
    mixer.A_log.copy_(torch.arange(1, mixer.states + 1, dtype=torch.float32).log().expand_as(mixer.A_log))
    mixer.D.fill_(1)
    nn.init.uniform_(mixer.dt_proj.weight, -(mixer.rank**-0.5), mixer.rank**-0.5)
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand_like(mixer.dt_proj.bias) * (high - low) + low).clamp(min=1e-4)
    mixer.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
