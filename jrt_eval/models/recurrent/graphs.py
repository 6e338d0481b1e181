"""Decoding with CUDA graphs: the few hundred kernel launches of a decode step are recorded once and replayed as one.

A graph reads and writes fixed addresses, so it has its own state and tokens. `Graphs.step` copies a batch's state into it after the
prefill, and every replay updates it in place. There is one graph per batch size; the two most recent are kept.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Recording takes about as long as this many steps: shorter generations run without a graph.
WORTH_RECORDING = 8
KEPT = 2

Step = Callable[[Tensor], Tensor]
Result = TypeVar("Result")
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def record(run: Callable[[], Result], pool: Any = None) -> Callable[[], Result]:
    """`run` as a CUDA graph. The next call overwrites the result. `pool`: memory that graphs share."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # so that libraries allocate workspaces and choose kernels before the recording
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class Graphs:
    """The recorded decode steps of one model.

    Args:
        record: records a function and returns its replay
    """

    def __init__(self, record: Record = record) -> None:
        self._record = record
        self._kept: OrderedDict[Hashable, tuple[Tensor, list[Tensor], Callable[[], Tensor]]] = OrderedDict()
        self._failed = False

    def __deepcopy__(self, memo: Any) -> Graphs:  # a copied model records its own
        return Graphs(self._record)

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def step(self, model: Any, state: Any, tokens: int) -> Step | None:
        """A function that runs decode steps from a copy of `state` with a graph; None if there is no graph for this state.

        `tokens`: the expected number of steps. The next step overwrites the logits that a step returns.
        """
        held = leaves(state)
        if held is None or self._failed:
            return None
        key = self._key(model, held)
        if key not in self._kept and tokens < WORTH_RECORDING:
            return None
        # Tensors created in inference mode can be written in inference mode only, so everything runs in it.
        with torch.inference_mode():
            if key not in self._kept and not self._recorded(key, model, state):
                return None
            self._kept.move_to_end(key)
            entry, own, replay = self._kept[key]
            for mine, given in zip(own, held, strict=True):
                mine.copy_(given)

        def step(chosen: Tensor) -> Tensor:
            with torch.inference_mode():
                entry.copy_(chosen)
                return replay()

        return step

    def _recorded(self, key: Hashable, model: Any, state: Any) -> bool:
        while len(self._kept) >= KEPT:
            self._kept.popitem(last=False)
        device = state.length.device
        own = state.select(torch.arange(len(state.length), device=device))
        held = leaves(own)
        assert held is not None
        entry = torch.zeros_like(state.length)

        def run() -> Tensor:
            # Autocast must convert the weights inside the graph: its cache is cleared at the end of autocast.
            with torch.autocast(
                device.type,
                dtype=torch.get_autocast_dtype(device.type),
                enabled=torch.is_autocast_enabled(device.type),
                cache_enabled=False,
            ):
                logits: Tensor = model.step(entry, own)
            return logits

        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                replay = self._record(run)
        except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
            self._failed = True
            log.warning("decoding without CUDA graphs: %s", str(error).strip().partition("\n")[0])
            return False
        log.info("decoding with a CUDA graph, %d rows", len(state.length))
        self._kept[key] = entry, held, replay
        return True

    @staticmethod
    def _key(model: Any, held: list[Tensor]) -> Hashable:
        """What a graph was recorded for: shapes, precision, and addresses of the weights."""
        device = held[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights = hash(tuple(p.data_ptr() for p in model.parameters()))
        return tuple((x.shape, x.dtype) for x in held), precision, model.backend, weights


def leaves(state: Any) -> list[Tensor] | None:
    """All tensors of a state, or None if one of them grows with the sequence (softmax attention)."""
    tensors = [state.length]
    for layer in state.layers:
        parts = layer if isinstance(layer, tuple) else (layer,)
        if not all(isinstance(part, Tensor) for part in parts):
            return None
        tensors += parts
    return tensors
