"""What the rest of the package needs of a language model, whichever class it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jrt_eval.models.batching import Batching


class StopTest(Protocol):
    """Whether rows have stopped; a function of their tokens alone, so that rows may be any of a batch's."""

    @property
    def tail(self) -> int:
        """How many of a row's last tokens suffice to decide."""

    def __call__(self, rows: Sequence[list[int]]) -> list[bool]:
        """rows: each row's new tokens, or its last `tail` of them -> whether the last token completes a stop."""


class StateBytes(NamedTuple):
    """Bytes of one sequence's state, by kind."""

    attention: int = 0  # keys and values of softmax attention
    recurrent: int = 0
    convolution: int = 0

    @property
    def total(self) -> int:
        return self.attention + self.recurrent + self.convolution


class LanguageModel(Protocol):
    """A causal language model as `jrt_eval.load_model` returns it: `JRTModel`, `MambaModel` or
    `TransformersModel`.

    Prompts are lists of token ids of any lengths; a row's result does not depend on the other rows of its batch.
    """

    source: str  # folder or hub id of the weights
    revision: str | None

    @property
    def family(self) -> str:
        """jrt, based, attn or hybrid; mamba_hybrid; transformers' model_type for other models."""

    @property
    def config(self) -> Any: ...

    @property
    def raw_config(self) -> Mapping[str, Any]:
        """The contents of config.json."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table, padding rows included."""

    @property
    def enc_length(self) -> int:
        """M, the tokens that a JRT encoder reads; 0 for models without an encoder."""

    @property
    def end_tokens(self) -> list[int]:
        """End-of-text tokens that the checkpoint's config files name."""

    @property
    def batching(self) -> Batching:
        """Which rows may share a batch, and why."""

    @property
    def kernels(self) -> Mapping[str, str]:
        """What computes the recurrent functions: "short_conv (cpu)", "PyTorch" or a package, by the function's name.

        For our own classes, the backend of "all operators".
        """

    @property
    def shares_contexts(self) -> bool:
        """Whether `score` reads a context once, however many continuations follow it in a batch."""

    def num_parameters(self) -> int: ...

    def state_bytes(self, length: int) -> StateBytes:
        """Bytes of one sequence's state after `length` tokens."""

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """An object with `.logits` (batch, length, vocabulary) for input_ids (batch, length)."""

    def continue_prompts(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        *,
        sampling: Mapping[str, Any],
        stop_ids: list[int],
        stop_test: StopTest | None = None,
        short_prompt: str = "left_pad",
    ) -> list[list[int]]:
        """Each prompt's new tokens, its stop token included.

        sampling: generation arguments as transformers names them. short_prompt: what a JRT model does with a prompt
        shorter than its encoder (see `JRTModel.prepare_prompt`).
        """

    def score(
        self, contexts: list[list[int]], continuations: list[list[int]], *, short_prompt: str = "left_pad"
    ) -> list[tuple[Tensor, Tensor]]:
        """For each pair, log p (n,) of the continuation's n tokens after its context, and whether greedy decoding
        would choose each (n,).
        """


def token_ids(value: Any) -> list[int]:
    """One token id, a list of them, or None, as a list."""
    given = value if isinstance(value, (list, tuple)) else [value]
    return [int(token) for token in given if isinstance(token, int) and not isinstance(token, bool) and token >= 0]
