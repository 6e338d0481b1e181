"""A grid that runs in a second."""

from __future__ import annotations

import torch

from jrt_eval.experiments.state_size.grid import GridSettings

CPU = torch.device("cpu")
SMALL = GridSettings(
    rates=(1e-2,), seeds=(0, 1), steps=4, batch=4, examples=8, evaluation_examples=6, vocabulary=80, limit=32
)
