"""Decoding of transformers' models through CUDA graphs: a static cache, and the decode step recorded once and replayed.

transformers' `StaticCache` keeps keys, values and states at fixed addresses and counts tokens in a tensor, so a decode step on it can
be recorded without torch.compile. Whether a class computes the same on it is measured, once per model; so is the recorded step.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jrt_eval.models.batching import static_cache_agrees
from jrt_eval.models.cache_size import module_states, tensors_in
from jrt_eval.models.cpu_inference import cache_argument
from jrt_eval.models.recurrent.graphs import WORTH_RECORDING, record

log = logging.getLogger(__name__)

KEPT = 1  # caches, each with its recorded step
Record = Callable[[Callable[[], Any]], Callable[[], Any]]
ROOM = 256  # a cache has room for a multiple of it, so that batches of similar lengths share one


class RecordedDecoding:
    """The static caches and recorded decode steps of one model.

    Args:
        record: records a function and returns its replay
    """

    def __init__(self, record: Record = record) -> None:
        self._record = record
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._works: bool | None = None  # not measured yet

    def __deepcopy__(self, memo: Any) -> RecordedDecoding:  # a copied model records its own
        return RecordedDecoding(self._record)

    def __reduce__(self) -> tuple[type[RecordedDecoding], tuple[()]]:
        return RecordedDecoding, ()

    @contextmanager
    def generating(
        self, inner: Any, rows: int, length: int, new: int, arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Arguments for one `inner.generate` inside; none where the search or the class does not allow a static cache.

        rows, length: of the prompts. new: tokens to generate. arguments: the others of `generate`.
        """
        recording = None if new < WORTH_RECORDING else self._recording(inner, rows, length + new, arguments)
        if recording is None:
            yield {}
            return
        plain, own = inner.forward, vars(inner).get("forward")
        inner.forward = functools.wraps(plain)(functools.partial(recording.forward, plain))
        try:
            yield {recording.name: recording.cache, "disable_compile": True}
        except torch.cuda.OutOfMemoryError:
            recording.failed = True
            log.warning("decoding without CUDA graphs: a static cache of %d rows does not fit the GPU", rows)
            raise
        finally:
            if own is None:
                del inner.forward
            else:
                inner.forward = own
            if recording.failed:
                self._works = False
                self._kept.clear()

    def _recording(self, inner: Any, rows: int, tokens: int, arguments: Mapping[str, Any]) -> _Recording | None:
        name = cache_argument(inner, arguments)
        spread = len(set(getattr(inner, "hf_device_map", {}).values())) > 1
        if name is None or spread or arguments.get("num_return_sequences") not in (None, 1):
            return None
        if self._works is None:
            self._works = static_cache_agrees(inner)
            log.info("decoding with a static cache: %s", "recorded steps" if self._works else "other results, not used")
        if not self._works:
            return None
        device = inner.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        room = -(-tokens // ROOM) * ROOM
        key = (rows, room, precision, hash(tuple(p.data_ptr() for p in inner.parameters())))
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = _Recording(inner, name, room, self._record)
        self._kept.move_to_end(key)
        self._kept[key].cache.reset()
        return self._kept[key]


class _Recording:
    """A static cache and the decode step that was recorded on it."""

    def __init__(self, inner: Any, name: str, room: int, record: Record) -> None:
        from transformers import StaticCache

        self.name, self.cache = name, StaticCache(config=inner.config, max_cache_len=room)
        self.failed = False
        self._inner = inner
        self._record = record
        self._inputs: dict[str, Any] = {}
        self._replay: Callable[[], Any] | None = None

    def forward(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`plain`, the model's forward; a decode step on this cache is replayed."""
        ids = kwargs.get("input_ids")
        if self.failed or args or ids is None or ids.shape[1] != 1 or kwargs.get(self.name) is not self.cache:
            return plain(*args, **kwargs)
        if self._replay is None and not self._recorded(plain, kwargs):
            return plain(**kwargs)
        if not self._take(kwargs):
            self._give_up("the inputs of the model's decode steps change their kind")
            return plain(**kwargs)
        assert self._replay is not None
        return self._replay()

    def _recorded(self, plain: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
        """Record the step with these inputs, and compare two replays with two plain steps."""
        self._inputs = {key: _copied(value) for key, value in kwargs.items()}
        device = kwargs["input_ids"].device.type

        def run() -> Any:
            with torch.autocast(
                device,
                dtype=torch.get_autocast_dtype(device),
                enabled=torch.is_autocast_enabled(device),
                cache_enabled=False,
            ):
                return plain(**self._inputs)

        held = tensors_in(self.cache)
        if any(stride == 0 and size > 1 for x in held for size, stride in zip(x.shape, x.stride(), strict=True)):
            return self._give_up("its cache has tensors whose elements share memory")
        if any(True for _ in module_states(self._inner)):
            return self._give_up("the class keeps its state in its modules")
        before, attributes = [x.clone() for x in held], self._attributes()

        def restore() -> None:
            for layer, values in zip(self.cache.layers, attributes, strict=True):
                vars(layer).update({key: dict(x) if isinstance(x, dict) else x for key, x in values.items()})
            for x, value in zip(held, before, strict=True):
                x.copy_(value)

        def two_steps(step: Callable[[], Any]) -> list[Tensor]:
            """Logits of two different tokens, and what they leave in the cache."""
            restore()
            self._inputs["input_ids"].copy_(kwargs["input_ids"])
            first = step().logits.clone()
            self._inputs["input_ids"].copy_(first[:, -1:].argmin(-1))
            return [first, step().logits.clone(), *(x.clone() for x in held)]

        try:
            expected = two_steps(run)
            if not _same(self._attributes(), attributes):
                return self._give_up("a step changes its cache outside of the cache's tensors")
            self._replay = self._record(run)
            if not all(map(_close, two_steps(self._replay), expected)):
                return self._give_up("a recorded step computes other logits")
        except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
            return self._give_up(str(error).strip().partition("\n")[0])
        finally:
            restore()
        return True

    def _give_up(self, reason: str) -> bool:
        log.warning("decoding without CUDA graphs: %s", reason)
        self.failed, self._replay = True, None
        return False

    def _attributes(self) -> list[dict[str, Any]]:
        """What the cache's layers hold, tensors by reference."""
        return [
            {key: dict(x) if isinstance(x, dict) else x for key, x in vars(layer).items()}
            for layer in self.cache.layers
        ]

    def _take(self, kwargs: dict[str, Any]) -> bool:
        """Copy a step's inputs to where the recorded step reads them; whether they are of the same kind."""
        return kwargs.keys() == self._inputs.keys() and all(_take(self._inputs[k], v) for k, v in kwargs.items())


def _same(x: Any, y: Any) -> bool:
    """Whether both hold the same tensors, and equal values otherwise."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return x is y
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(_same(x[key], y[key]) for key in x)
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(map(_same, x, y))
    return bool(x == y)


def _close(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are equal but for rounding."""
    if not x.is_floating_point() or x.numel() < 2:
        return torch.equal(x, y)
    share = 1e-3 if x.dtype in (torch.float32, torch.float64) else 0.1
    return float((x.float() - y.float()).abs().max()) <= share * max(float(y.float().std()), 1e-6)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _take(mine: Any, given: Any) -> bool:
    if isinstance(mine, Tensor):
        if not isinstance(given, Tensor) or mine.shape != given.shape or mine.dtype != given.dtype:
            return False
        mine.copy_(given)
        return True
    if isinstance(mine, dict):
        return isinstance(given, dict) and mine.keys() == given.keys() and all(_take(mine[k], given[k]) for k in mine)
    return mine is given or bool(mine == given)
