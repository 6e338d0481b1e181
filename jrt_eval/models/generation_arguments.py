"""Generation arguments of a task for models on transformers' classes: which `generate` takes, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jrt_eval.errors import UserError, nearest

# Arguments that jrt-eval sets for each batch, and what the user does instead.
_SET = {
    "max_new_tokens": "use max_gen_toks",
    "max_length": "use max_gen_toks",
    "stop_strings": "use until",
    "eos_token_id": "use until",
    "return_dict_in_generate": "leave it out",
}
_TEXTS = ("cache_implementation", "early_stopping")  # whose values may be text


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` for transformers' `generate`; a temperature of 0 or less is greedy search. Raises UserError for others."""
    from transformers import GenerationConfig

    known = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _SET]
    arguments = {name: value for name, value in given.items() if value is not None and name != "pad_token_id"}
    for name, value in arguments.items():
        if name in _SET:
            raise UserError(f"generation argument {name} is set by jrt-eval: {_SET[name]}")
        if name not in known:
            raise UserError(f"generation argument {name!r} is unknown to transformers' generate{nearest(name, known)}")
        if isinstance(value, str) and name not in _TEXTS:
            raise UserError(f"generation argument {name}={value!r} must be a number, true or false")
    if arguments.pop("num_return_sequences", 1) != 1:
        raise UserError("generation argument num_return_sequences: one text is evaluated per prompt, so it must be 1")
    if arguments.get("temperature", 1.0) <= 0:
        arguments["do_sample"] = False
    if not arguments.get("do_sample"):
        # transformers warns about sampling arguments, which some checkpoints set, in greedy search
        arguments = {k: v for k, v in arguments.items() if k not in ("temperature", "top_p", "top_k", "min_p")}
        arguments |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return arguments


@contextmanager
def explained(given: Mapping[str, Any]) -> Iterator[None]:
    """Raise a UserError that names the arguments for what transformers says about their values."""
    try:
        yield
    except ValueError as error:
        if not any(value is not None for value in given.values()):
            raise
        listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
        line = " ".join(str(error).split())[:300]
        raise UserError(f"generation arguments {listed}: {line}") from error
