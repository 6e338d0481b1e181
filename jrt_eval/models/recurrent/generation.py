"""Generation: continues prompts token by token, greedily or by sampling, until every row has stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jrt_eval.errors import UserError, nearest
from jrt_eval.models.interface import StopTest


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. Names and meanings are those of transformers' `generate`; all but `repetition_penalty` need
    `do_sample`.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> SamplingConfig:
        """Read generation arguments of a task or the command line. Raises UserError for unknown ones."""
        given = {k: v for k, v in given.items() if v is not None}
        for key, harmless in (
            ("num_beams", 1),
            ("use_cache", True),
            ("num_return_sequences", 1),
            ("early_stopping", False),
        ):
            if key in given and given.pop(key) != harmless:
                raise UserError(f"generation argument {key}: this model supports only {harmless}")
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise UserError(
                    f"generation argument {key!r} is unknown; use one of: {', '.join(known)}" + nearest(key, known)
                )
        typed = {k: type(getattr(cls, k))(v) for k, v in given.items()}
        if typed.get("temperature", 1.0) <= 0:  # the limit of ever lower temperatures
            typed |= {"do_sample": False, "temperature": 1.0}
        sampling = cls(**typed)
        return sampling


@dataclass
class Generation:
    """The result of a generation.

    Attributes:
        tokens: each row's new tokens, including its stop token
        scores: the logits before each new token, (batch, vocabulary) per step
        sequences: (batch, prompt + new tokens)
    """

    tokens: list[list[int]]
    scores: tuple[Tensor, ...] | None = None
    sequences: Tensor | None = None


class Steppable(Protocol):
    """The part of a model that generation uses."""

    def prefill(self, prompts: list[list[int]], *, short_prompt: str) -> tuple[Tensor, Any]: ...

    def stepper(self, state: Any, tokens: int) -> Callable[[Tensor], Tensor]: ...

    @property
    def runs_ahead(self) -> bool: ...


def right_padded(rows: list[list[int]], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Token lists as (batch, longest) and their lengths (batch,)."""
    longest = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), longest), fill, dtype=np.int64)
    for at, row in zip(ids, rows, strict=True):
        at[: len(row)] = row  # several times as fast as torch.tensor(rows)
    return torch.from_numpy(ids).to(device), torch.tensor([len(row) for row in rows], device=device)


def choose(
    logits: Tensor, sampling: SamplingConfig, history: list[list[int]], generator: torch.Generator | None
) -> Tensor:
    """The next token of each row (batch,) from logits (batch, vocabulary) float32."""
    if sampling.repetition_penalty != 1.0:
        logits = logits.clone()
        for row, tokens in zip(logits, history, strict=True):
            seen = torch.tensor(sorted(set(tokens)), device=row.device)
            if len(seen):
                value = row[seen]
                row[seen] = torch.where(
                    value > 0, value / sampling.repetition_penalty, value * sampling.repetition_penalty
                )
    if not sampling.do_sample:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        ordered, place = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs >= sampling.top_p  # the most likely token always stays
        logits = logits.masked_fill(drop.scatter(1, place, drop), -torch.inf)
    probs = logits.softmax(-1)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def fetch(x: Tensor) -> Callable[[], list[int]]:
    """Start copying x (n,) to the host. The result waits for the copy, but not for work that the GPU received later."""
    if x.device.type != "cuda":
        return lambda: x.tolist()  # type: ignore[no-any-return]
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> list[int]:
        copied.synchronize()
        return host.tolist()  # type: ignore[no-any-return]

    return wait


@torch.no_grad()
def generate(
    model: Steppable,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    sampling: SamplingConfig,
    stop_ids: list[int],
    stop_test: StopTest | None = None,
    short_prompt: str = "left_pad",
    generator: torch.Generator | None = None,
    keep_scores: bool = False,
) -> Generation:
    """Continue each prompt until a token of `stop_ids`, until `stop_test` returns True for it, or for `max_new_tokens`.

    A row that has stopped runs along with the others and its tokens are ignored. The batch ends when all rows have stopped.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens <= 0 or not prompts:
        return Generation(tokens, () if keep_scores else None)
    done = [False] * len(prompts)
    scores = []
    logits, state = model.prefill(prompts, short_prompt=short_prompt)
    step = model.stepper(state, max_new_tokens - 1)
    for count in range(1, max_new_tokens + 1):
        if keep_scores:
            scores.append(logits.clone())  # the next step may overwrite them
        history = [p + t for p, t in zip(prompts, tokens, strict=True)] if sampling.repetition_penalty != 1.0 else []
        chosen = choose(logits, sampling, history, generator)
        read = fetch(chosen)
        ahead = model.runs_ahead and count < max_new_tokens
        if ahead:  # while the host reads the tokens; unused if they are the last
            logits = step(chosen)
        for row, token in enumerate(read()):
            if not done[row]:
                tokens[row].append(token)
                done[row] = token in stop_ids or len(tokens[row]) >= max_new_tokens
        if stop_test is not None:
            done = [a or b for a, b in zip(done, stop_test(tokens), strict=True)]
        if all(done):
            break
        if not ahead:
            logits = step(chosen)
    return Generation(tokens, tuple(scores) if keep_scores else None)
