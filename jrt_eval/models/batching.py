"""How rows of different lengths may share a batch of a transformers model: measured, not listed.

Many recurrent classes compute other results for a row that is padded on the left. `measure` decodes three short rows
alone and in batches, with the same tokens, and compares the logits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jrt_eval.models.cpu_inference import cache_argument

LONG, SHORT, STEPS = 23, 9, 4  # the padding, and what follows it, are longer than a short convolution

Mode = Literal["padded", "equal lengths", "alone"]


@dataclass(frozen=True)
class Batching:
    """decode: which rows may share a batch of `generate`. score: the same for one forward pass padded on the right."""

    decode: Mode
    score: Mode
    reason: str

    def __str__(self) -> str:
        return f"{self.decode} ({self.reason})"


def measure(inner: Any) -> Batching:
    """The fullest batches in which each row's logits are those that it has alone."""
    rows = _probes(inner)
    with torch.inference_mode():
        alone = [_decode(inner, [row])[0] for row in rows]
        spread = float(alone[0].std())
        tolerance = _tolerance(inner, spread)
        padded = _difference(lambda: _decode(inner, rows[:2]), alone[:2])
        equal = 0.0 if padded <= tolerance else _difference(lambda: _decode(inner, rows[1:]), alone[1:])
        right = _difference(lambda: _score(inner, rows[:2]), [_score(inner, [row])[0] for row in rows[:2]])
        aligned = 0.0
        if right > tolerance:
            aligned = _difference(lambda: _score(inner, rows[1:]), [_score(inner, [row])[0] for row in rows[1:]])
    decode: Mode = "padded" if padded <= tolerance else "equal lengths" if equal <= tolerance else "alone"
    score: Mode = "padded" if right <= tolerance else "equal lengths" if aligned <= tolerance else "alone"
    reason = f"left padding changes logits by {padded:.1e}"
    if decode == "alone":
        reason += f", a batch of equal lengths by {equal:.1e}"
    if score != "padded":
        reason += f", right padding by {right:.1e}"
    return Batching(decode, score, f"{reason}; their standard deviation is {spread:.1e}")


def static_cache_agrees(inner: Any) -> bool:
    """Whether a padded batch has the same logits on transformers' static cache as on its usual one."""
    from transformers import StaticCache

    name = cache_argument(inner, {})
    rows = _probes(inner)[:2]
    if name is None:
        return False
    with torch.inference_mode():
        usual = _decode(inner, rows)
        difference = _difference(
            lambda: _decode(
                inner, rows, **{name: StaticCache(config=inner.config, max_cache_len=2 * LONG), "disable_compile": True}
            ),
            usual,
        )
    return difference <= _tolerance(inner, float(usual[0].std()))


def _probes(inner: Any) -> list[list[int]]:
    """Three short rows of random tokens; the last two have the same length."""
    draw = random.Random(0)
    end = getattr(inner.generation_config, "eos_token_id", None)
    ends = end if isinstance(end, list) else [end]  # would end the decoding
    vocabulary = [
        token for token in range(min(1000, inner.get_input_embeddings().weight.shape[0])) if token not in ends
    ]
    return [draw.choices(vocabulary, k=length + STEPS) for length in (LONG, SHORT, SHORT)]


def _tolerance(inner: Any, spread: float) -> float:
    """The largest difference of logits that is rounding; their standard deviation is `spread`.

    Measured on tiny checkpoints of 33 classes: in bfloat16 rounding is at most 0.2 deviations, in float32 7e-5, and a class that
    computes something else with padding is 4.6 deviations or more away. Too strict a limit costs speed only.
    """
    return max(spread, 1e-6) * (1e-3 if inner.dtype in (torch.float32, torch.float64) else 0.3)


def _difference(run: Callable[[], list[Tensor]], alone: list[Tensor]) -> float:
    """The largest difference to the rows' own logits; infinite where the class fails on the batch or gives NaN."""
    try:
        together = run()
    except Exception:  # noqa: BLE001 - whatever a class raises on a batch of this kind, it cannot be used
        return float("inf")
    worst = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
    return worst if worst == worst else float("inf")


def _decode(inner: Any, rows: list[list[int]], **arguments: Any) -> list[Tensor]:
    """Logits (STEPS, vocabulary) at the last STEPS tokens of each row, which `generate` is made to choose."""
    prompts = [row[:-STEPS] for row in rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=inner.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=inner.device)
    out = inner.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda row, so_far: [rows[row][len(so_far) - width - STEPS]],
        output_logits=True,
        return_dict_in_generate=True,
        **arguments,
    )
    return list(torch.stack(out.logits, 1).float())


def _score(inner: Any, rows: list[list[int]]) -> list[Tensor]:
    """Logits (length, vocabulary) of each row from one forward pass, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=inner.device)
    logits = inner(input_ids=ids).logits.float()
    return [x[: len(row)] for x, row in zip(logits, rows, strict=True)]
