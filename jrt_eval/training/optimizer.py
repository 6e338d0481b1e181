"""AdamW's parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from jrt_eval.training.config import Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on biases, norms and other vectors, nor on Mamba's A_log and D."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            without = parameter.dim() < 2 or name.endswith(("A_log", ".D"))
            (exempt if without else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: Optimizer, device: torch.device) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type == "cuda",
    )


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """The rate of step 1 ... steps: linear over the first `warmup` share, then half a cosine from lr to min_lr."""
    warm = math.ceil(config.warmup * steps)
    if step <= warm:
        return config.lr * step / warm
    progress = (step - warm) / max(1, steps - warm)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
