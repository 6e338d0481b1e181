"""Values of `--model_args`: types, ranges, and what to do about arguments that this adapter does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jrt_eval.errors import UserError, nearest

KNOWN = [
    "pretrained", "checkpoint_name", "revision", "subfolder", "tokenizer", "dtype", "mixed_precision_dtype", "device",
    "device_map", "parallelize", "attn_implementation", "peft", "batch_size", "max_batch_size", "max_length",
    "max_gen_toks", "arch", "backend", "short_prompt", "trust_remote_code", "add_bos_token", "prefix_token_id",
    "cuda_graphs", "cpu_linear", "on_truncation", "think_end_token", "enable_thinking", "chat_template_args",
]  # fmt: skip

# Arguments of lm-eval's `hf` that this adapter does not have.
OF_HF = {
    "load_in_8bit", "load_in_4bit", "quantization_config", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "gguf_file", "autogptq", "gptqmodel", "delta", "tp_plan", "max_memory_per_gpu",
    "max_cpu_memory", "offload_folder", "logits_cache", "truncation", "use_fast_tokenizer", "softmax_dtype",
}  # fmt: skip


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first of `arguments`, which are none of ours."""
    for name in arguments:
        if name in OF_HF:
            raise UserError(f"model argument {name!r} is not supported here: use --model hf")
        raise UserError(f"model argument {name!r} is not known, known are: {', '.join(KNOWN)}" + nearest(name, KNOWN))


def choice(name: str, value: Any, known: list[str]) -> str:
    if value not in known:
        raise UserError(f"{name}={value} is not known, known are: {', '.join(known)}" + nearest(str(value), known))
    return str(value)


def flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise UserError(f"{name}={value} is neither true nor false")
    return text in ("true", "1")


def integer(name: str, value: Any, low: int = 1) -> int:
    try:
        number = int(str(value)[:20])
    except ValueError:
        number = low - 1
    if number < low:
        raise UserError(f"{name}={str(value)[:40]} must be an integer of at least {low}")
    return number


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A dict, or one as JSON; None is an empty one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(f"{name}={value} is not a JSON object") from None
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name}={value} must be an object")
    return dict(value or {})


def token_or_text(value: Any) -> int | str | None:
    """A token id or a token's text."""
    return int(value) if isinstance(value, str) and value.isdigit() else value
