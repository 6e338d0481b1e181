"""Bytes of one sequence's cache in a transformers model, by kind, measured on short sequences."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.models.interface import StateBytes

_SHORT, _LONG = 16, 32  # tokens of the measured sequences
_NO_CACHE = ("logits", "loss", "hidden_states", "attentions", "router_logits", "aux_loss")


@torch.no_grad()
def cache_bytes(inner: Any, length: int) -> StateBytes:
    """Bytes after `length` tokens: what grows with the sequence is extrapolated, sliding windows up to their window."""
    short, long = dict(_cache(inner, _SHORT)), dict(_cache(inner, _LONG))
    sizes = {"attention": 0, "recurrent": 0, "convolution": 0}
    for name, (end, window) in long.items():
        start = short[name][0] if name in short else end
        if window is not None:
            total = start // min(_SHORT, window - 1) * min(length, window - 1)
        else:
            total = start + (end - start) * (length - _SHORT) // (_LONG - _SHORT)
        attention = end != start or any(word in name for word in ("key", "value", "attn", "sliding_window"))
        sizes["convolution" if "conv" in name else "attention" if attention else "recurrent"] += max(0, total)
    return StateBytes(**sizes)


def _cache(inner: Any, length: int) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """(path, (bytes, window)) of every tensor that one sequence of `length` tokens leaves behind.

    It is in the output, or, for classes that keep their state in their modules, in a module's attributes.
    """
    from transformers import DynamicCache

    vocabulary = int(inner.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(length, device=inner.device) % vocabulary)[None]
    out = inner(input_ids=ids, use_cache=True)
    held = {key: value for key, value in out.items() if key not in _NO_CACHE}
    if not held and "cache" in inspect.signature(inner.forward).parameters:  # the class fills a cache that is given
        held = {"cache": DynamicCache(config=inner.config)}
        inner(input_ids=ids, use_cache=True, **held)
    seen: set[int] = set()
    for path, tensor, window in _walk(held, "", None, seen):
        yield path, (_bytes(tensor), window)
    for path, tensor in module_states(inner):
        if id(tensor) not in seen:
            yield path, (_bytes(tensor), None)


def tensors_in(cache: Any) -> list[Tensor]:
    """Every tensor inside a cache object."""
    return [tensor for _, tensor, _ in _walk(cache, "", None, set())]


def module_states(inner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """States that a class keeps in its modules and not in its cache."""
    for name, module in inner.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and key.endswith(("_state", "_states")):
                yield f"{name}.{key}", value


def _walk(value: Any, path: str, window: int | None, seen: set[int]) -> Iterator[tuple[str, Tensor, int | None]]:
    """Every tensor inside a cache object; `window` for keys and values of a layer that has a sliding window."""
    if id(value) in seen or isinstance(value, (type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value, window if path.endswith((".keys", ".values")) else None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}", window, seen)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}.{i}", window, seen)
    elif hasattr(value, "__dict__"):
        size = getattr(value, "sliding_window", None)
        size = size if isinstance(size, int) and size > 1 else None
        for key, item in vars(value).items():
            yield from _walk(item, f"{path}.{key}", size, seen)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
