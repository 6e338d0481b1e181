"""The context-length rule: how many tokens a model's input may have. Imports no torch.

`max_length` counts if the user gives it. The checkpoints of the paper and Mamba in the mamba_ssm layout have 2,048.
For other models it is what lm-eval's `hf` takes: the limit in the config, else the tokenizer's, else 2,048.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from jrt_eval.models.checkpoints import Checkpoint, family_of

DEFAULT = 2048
_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
ON_TRUNCATION = ("left", "middle", "skip", "fail")
_NO_LIMIT = 10**9  # transformers gives tokenizers without a limit one of 1e30


def context_length(config: Mapping[str, Any], tokenizer: Any = None) -> int:
    """config: of config.json, with transformers' defaults filled in where transformers knows the class.

    tokenizer: a transformers tokenizer.
    """
    if _is_the_papers(config):
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        return min(DEFAULT, int(positions)) if _is_length(positions) else DEFAULT
    text = config.get("text_config")
    for source in (text, config):
        for key in _KEYS:
            if isinstance(source, Mapping) and _is_length(value := source.get(key)):
                return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if _is_length(limit) and limit < _NO_LIMIT else DEFAULT


def shorten(tokens: Sequence[int], room: int, side: str) -> list[int]:
    """The `room` tokens that stay of a prompt: its end (side `left`), or its beginning and its end (`middle`).

    Half of them are the beginning, so `middle` keeps a question there as well as the cue at the end.
    """
    if len(tokens) <= room:
        return list(tokens)
    head = room // 2 if side == "middle" else 0
    return [*tokens[:head], *tokens[len(tokens) - (room - head) :]]


def context_length_of(
    name: str, revision: str | None = None, tokenizer: Any = None, *, subfolder: str | None = None
) -> int:
    """`context_length` of a model by folder or hub id. Raises `UserError` if there is no such model."""
    checkpoint = Checkpoint(name, revision, subfolder)
    config = checkpoint.config()
    if not _is_the_papers(config):
        config = _with_defaults(checkpoint, config)
    return context_length(config, tokenizer)


def _is_the_papers(config: Mapping[str, Any]) -> bool:
    """Whether a config has the release's or mamba_ssm's layout; transformers' own Mamba is like its other classes."""
    return family_of(config) in ("jrt", "mamba") and "hidden_size" not in config


def _with_defaults(checkpoint: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        known: Any = AutoConfig.from_pretrained(checkpoint.location, trust_remote_code=False, **checkpoint.options)
    except Exception:  # noqa: BLE001 - a class that transformers does not know: then what the file says
        return config
    return dict(known.to_dict())


def _is_length(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 10**300
