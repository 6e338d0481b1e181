"""The model that is being evaluated, for tasks that need its tokenizer and context length.

lm-eval hands the model's arguments to tasks, which is enough for a model that has a name. A model object that is given to
`simple_evaluate` has none; `evaluating` makes it known to tasks that are loaded meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jrt_eval.prompts import truncation
from jrt_eval.prompts.tokenization import Tokenizer

_MODEL: ContextVar[Any] = ContextVar("evaluated_model", default=None)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Tasks that are loaded in this context belong to `model`, lm-eval's `LM` object (or None: its arguments tell)."""
    token = _MODEL.set(model)
    try:
        yield
    finally:
        _MODEL.reset(token)


def tokenizer() -> Tokenizer | None:
    """The tokenizer of the model object that is being evaluated, if there is one."""
    return tokenizer_of(_MODEL.get())


def tokenizer_of(model: Any) -> Tokenizer | None:
    """The transformers tokenizer of lm-eval's `LM` object, None if it has none."""
    found = _attribute(model, "tokenizer")
    if not all(hasattr(found, name) for name in ("encode", "decode", "convert_tokens_to_ids")):
        return None  # such as OpenAI's or a server's own
    return Tokenizer(str(getattr(found, "name_or_path", None) or type(model).__name__), found)


def max_length() -> int | None:
    """The context length of the model object that is being evaluated, if it says so."""
    return max_length_of(_MODEL.get())


def on_truncation() -> str:
    """What the model object that is being evaluated does with longer prompts (`jrt_eval.prompts.truncation`)."""
    return truncation.on_truncation(_MODEL.get())


def max_length_of(model: Any) -> int | None:
    """Tokens of prompt and continuation that lm-eval's `LM` object takes, None if it does not say, or leaves it to a
    server (`sends_texts`).
    """
    if _sends_texts(model):
        return None
    length = _attribute(model, "max_length")
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None


def sends_texts() -> bool:
    """Whether the evaluated model object is an API that sends prompts as texts, which lm-eval then never cuts."""
    return _sends_texts(_MODEL.get())


def _sends_texts(model: Any) -> bool:
    return _attribute(model, "tokenized_requests") is False


def _attribute(model: Any, name: str) -> Any:
    """An attribute of a model, or None. Some models load theirs when it is first read, from a hub that may not answer."""
    try:
        return getattr(model, name, None)
    except (OSError, ValueError, RuntimeError, ImportError):
        return None
