"""What lm-eval's requests hold: the text of the prompt, and how many new tokens are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DEFAULT_NEW_TOKENS = 256  # lm-eval's, where generation_kwargs do not say


def prompt_text(argument: Any) -> str:
    """A request's prompt. API models with a chat template have a JSON list of messages: their contents, one per line."""
    if isinstance(argument, str):
        return argument
    text = str(getattr(argument, "prompt", argument))
    try:
        messages = json.loads(text)
        return "\n".join(message["content"] for message in messages)
    except (ValueError, TypeError, LookupError):
        return text


def new_tokens(generation_kwargs: Mapping[str, Any] | None) -> int:
    """The new tokens that a request leaves room for."""
    options = generation_kwargs or {}
    return int(
        options.get("max_gen_toks") or options.get("max_new_tokens") or options.get("max_tokens") or DEFAULT_NEW_TOKENS
    )
