"""Training steps of a stack of models; on a GPU a step is a CUDA graph, one for each pair of set sizes.

The models are so small that the kernel launches of a step take longer than its arithmetic. A graph is a single launch.
The inputs that change from step to step (the examples' indices and the learning rates) are copied into tensors that the
graph reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.experiments.state_size.examples import Examples
from jrt_eval.experiments.state_size.stacked import Stack, StackedAdamW
from jrt_eval.models.recurrent.graphs import record

log = logging.getLogger(__name__)


class TrainingSteps:
    """Steps of `model` on `training` examples. `losses` (copies,) holds the losses of the last step."""

    def __init__(self, model: Stack, optimizer: StackedAdamW, training: Examples, batch: int) -> None:
        copies, device = len(model.embedding), model.embedding.device
        self.model, self.optimizer, self.training = model, optimizer, training
        self.index = torch.zeros(copies, batch, dtype=torch.int64, device=device)
        self.rates = torch.zeros(copies, device=device)
        self.losses = torch.zeros(copies, device=device)
        self.graphs: dict[tuple[int, int], Callable[[], None]] = {}

    def run(self, size: tuple[int, int], index: Tensor, rates: Tensor) -> None:
        """One step on the examples `index` (copies, batch) of a pair of sizes; rates (copies,) are the learning rates."""
        self.index.copy_(index, non_blocking=True)
        self.rates.copy_(rates, non_blocking=True)
        if size in self.graphs:
            self.graphs[size]()
        else:
            self._step(size)

    def _step(self, size: tuple[int, int]) -> None:
        logits = self.model(self.training.inputs[size][self.index])
        targets = self.training.answers[size][self.index].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(len(self.index), -1).mean(1)
        losses.sum().backward()
        self.losses.copy_(losses.detach())
        self.optimizer.step(self.rates)

    def capture(self, sizes: Iterable[tuple[int, int]]) -> bool:
        """Capture the step of each pair of sizes as a CUDA graph and return whether that worked.

        If not, steps launch their kernels one by one. Models and optimiser are as before afterwards.
        """
        state = self.optimizer.state()
        before = [tensor.clone() for tensor in state]
        try:
            self.graphs = self._captured(tuple(sizes))
        except RuntimeError as error:
            self.graphs = {}
            log.warning(
                "training without CUDA graphs, since a step could not be captured (%s)", str(error).splitlines()[0]
            )
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        for tensor, was in zip(state, before, strict=True):
            tensor.copy_(was)
        self.losses.zero_()
        return bool(self.graphs)

    def _captured(self, sizes: tuple[tuple[int, int], ...]) -> dict[tuple[int, int], Callable[[], None]]:
        pool = torch.cuda.graph_pool_handle()
        return {size: record(partial(self._step, size), pool) for size in sizes}
