"""Faster inference of transformers' attention models on a CPU: keys and values that grow in place, and the attention itself.

transformers appends to its cache by concatenation, which copies all keys and values of a sequence for every new token.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = "jrt_cpu"  # the name of `attention` among transformers' attention functions
_QUERIES = 128  # queries of one block
_ROOM = 64  # tokens that a cache can grow by, at least, before it is copied
# arguments of `generate` that say something else about the cache
_OTHER_CACHES = (
    "cache_implementation",
    "cache",
    "past_key_values",
    "assistant_model",
    "prompt_lookup_num_tokens",
)


def prepare(model: Any) -> None:
    """Let a transformers model that uses SDPA attention use `attention`, if this transformers can register it."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    except ImportError:
        return
    can_set = getattr(model, "_can_set_attn_implementation", lambda: False)
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not can_set():
        return
    AttentionInterface.register(ATTENTION, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, by other products where they are faster.

    query (batch, heads, length, dim), key and value (batch, key heads, held, dim) -> (batch, length, heads, dim). One query
    per row is grouped by its key head, so that keys are read once and not repeated. A causal prompt in bfloat16 is
    computed in blocks of queries by two matrix products, which oneDNN multiplies in bfloat16; SDPA's kernel does not.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, dim = query.shape
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None and not dropout
    if plain and length == 1 and attention_mask is None and heads != key.shape[1]:
        grouped = query.reshape(batch, key.shape[1], -1, dim)
        y = F.scaled_dot_product_attention(grouped, key, value, scale=scaling)
        return y.reshape(batch, 1, heads, -1), None
    if (
        plain
        and causal
        and length > _QUERIES
        and key.shape[2] == length
        and query.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    ):
        return _causal_in_blocks(query, key, value, dim**-0.5 if scaling is None else scaling), None
    y, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return y, None


def _causal_in_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    query = query.reshape(batch, groups, heads // groups, length, dim)
    keys = key.reshape(batch * groups, length, dim).transpose(1, 2)
    values = value.reshape(batch * groups, length, -1)
    y = query.new_empty(batch, length, groups, heads // groups, values.shape[-1])
    later = torch.ones(_QUERIES, _QUERIES, dtype=torch.bool, device=query.device).triu(1)
    for start in range(0, length, _QUERIES):
        end = min(start + _QUERIES, length)
        block = query[:, :, :, start:end] * scaling
        scores = torch.matmul(block.reshape(batch * groups, -1, dim), keys[..., :end])  # (batch * groups, rows, end)
        scores = scores.view(batch * groups, -1, end - start, end)
        scores[..., start:].masked_fill_(later[: end - start, : end - start], -torch.inf)
        weights = scores.softmax(-1).view(batch * groups, -1, end)
        out = torch.matmul(weights, values[:, :end])
        y[:, start:end] = out.view(batch, groups, -1, end - start, values.shape[-1]).permute(0, 3, 1, 2, 4)
    return y.view(batch, length, heads, -1)


def cache_argument(model: Any, arguments: Mapping[str, Any]) -> str | None:
    """What the model's forward calls its cache; None if `generate` with these arguments chooses a cache or a search itself."""
    settings = {**model.generation_config.to_diff_dict(), **arguments}
    if any(settings.get(key) is not None for key in _OTHER_CACHES):
        return None
    if settings.get("use_cache") is False or settings.get("num_beams") not in (None, 1):
        return None
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in takes), None)


def growing_cache(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of `generate`, beside `arguments`, that makes the cache's attention layers grow in place.

    Empty for models without such layers, and if anything chooses another cache or another search.
    """
    try:
        from transformers.cache_utils import DynamicCache, DynamicLayer
    except ImportError:
        return {}
    name = cache_argument(model, arguments)
    supported = getattr(model, "_supports_default_dynamic_cache", None)
    if name is None or supported is None or not supported():
        return {}
    grown = DynamicCache(config=model.config.get_text_config(decoder=True))
    layers = getattr(grown, "layers", [])
    if not any(type(layer) is DynamicLayer for layer in layers):
        return {}
    growing = _growing_layer(DynamicLayer)
    for layer in layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = growing
    return {name: grown}


@cache
def _growing_layer(base: Any) -> Any:
    """`base`, transformers' DynamicLayer, with an `update` that writes new tokens into reserved room."""

    class GrowingLayer(base):  # type: ignore[misc]
        keys: Tensor
        values: Tensor
        _rooms: tuple[Tensor, Tensor] | None = None  # keys and values (batch, heads, capacity, dim)

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            rooms = self._rooms or (None, None)
            self.keys, keys = _append(self.keys, key_states, rooms[0])
            self.values, values = _append(self.values, value_states, rooms[1])
            self._rooms = keys, values
            return self.keys, self.values

    return GrowingLayer


def _append(held: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """held (batch, heads, n, dim) and then new (batch, heads, m, dim), and the room that both are in.

    `held` is a view of the room's beginning unless something else replaced it, such as a change of the batch.
    """
    used = held.shape[-2] if held.numel() else 0
    length = used + new.shape[-2]
    mine = room is not None and used and held.data_ptr() == room.data_ptr() and held.shape[:2] == room.shape[:2]
    if room is None or not mine or length > room.shape[2]:
        room = new.new_empty(*new.shape[:2], length + max(_ROOM, length // 4), new.shape[-1])
        if used:
            room[:, :, :used] = held
    room[:, :, used:length] = new
    return room[:, :, :length], room
