"""Loss and teacher-forced accuracy of a model on held-out rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jrt_eval.data.rows import TokenRows
from jrt_eval.training.batches import Batch, Layout, Plan, collate
from jrt_eval.training.objective import LossSums


def tensors(batch: Batch, rows: Any, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `Trainable.forward` for some rows of a batch."""
    names = ("inputs", "labels", "weights", "masked", "left_pads", "encoder_lengths")
    return {name: torch.from_numpy(getattr(batch, name)[rows]).to(device, non_blocking=True) for name in names}


@torch.no_grad()
def validate(
    trainable: nn.Module,
    rows: TokenRows,
    lengths: list[int],
    layout: Layout,
    device: torch.device,
    *,
    batch_size: int,
    batches: int,
    autocast: AbstractContextManager[Any] | None = None,
) -> dict[str, float]:
    """`loss`, and the shares of answer tokens (`answer_tokens`) and of whole answers (`answers`) that are predicted.

    trainable: a `jrt_eval.training.objective.Trainable`. An answer token is predicted if it is the most likely one after
    the correct tokens before it. batch_size: rows per batch; batches: at most how many batches are read, in a fixed order.
    """
    size = min(batch_size, len(rows))
    plan = Plan(rows, lengths, size, layout, seed=0)
    loss = weight = right_tokens = tokens = right_rows = answered = 0.0
    trainable.eval()
    for number in range(min(batches, plan.per_epoch)):
        length, indices = plan.batch(number)
        batch = collate(rows, indices, length, layout, None)
        answers = torch.from_numpy(batch.answers).to(device)
        with autocast or nullcontext():
            sums: LossSums = trainable(**tensors(batch, np.arange(size), device), answers=answers)
        assert sums.right_tokens is not None
        assert sums.right_rows is not None
        loss, weight = loss + float(sums.ntp), weight + float(batch.weights.sum())
        right_tokens, tokens = right_tokens + float(sums.right_tokens), tokens + float(batch.answers.sum())
        right_rows, answered = right_rows + float(sums.right_rows), answered + float(batch.answers.any(1).sum())
    trainable.train()
    return {
        "loss": loss / max(weight, 1e-8),
        "answer_tokens": right_tokens / max(tokens, 1),
        "answers": right_rows / max(answered, 1),
    }
