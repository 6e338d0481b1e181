"""Which rows make which batch, and how rows become tensors. All of it is a pure function of (seed, number)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jrt_eval.errors import UserError
from jrt_eval.training.rows import Rows

IGNORE = -100
PAD = 220  # a space; JRT-RNN's short prompts are padded with it (spec/models.md)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How rows are laid into a batch.

    encoder: M for the JRT objective, else None. Then a row whose prompt is shorter than M is left-padded until the
    prompt ends at M, as a JRT-RNN's prompts are; all other rows begin at position 0. Next-token labels before
    `first_position` do not count.
    """

    encoder: int | None = None
    boundary: bool = False
    context_weight: float = 1.0
    mask_probability: float = 0.0
    mask_token: int = 0

    @property
    def first_position(self) -> int:
        if self.encoder is None:
            return 0
        return self.encoder - 1 if self.boundary else self.encoder

    def left_pad(self, prompt: int) -> int:
        return max(0, self.encoder - prompt) if self.encoder is not None and prompt else 0


@dataclass(frozen=True)
class Batch:
    """Arrays (rows, length); `left_pads` (rows,). Labels are -100 where nothing is owed; weights belong to labels."""

    inputs: Ints
    labels: Ints
    weights: npt.NDArray[np.float32]
    answers: npt.NDArray[np.bool_]
    masked: Ints
    left_pads: Ints

    @property
    def tokens(self) -> int:
        return int(self.inputs.size)


class Plan:
    """An endless, shuffled sequence of batches of row indices.

    An epoch is a permutation of all rows, cut into batches of rows of like length, in random order; rows that fill no
    batch wait for the next epoch.
    """

    def __init__(self, rows: Rows, lengths: list[int], batch_size: int, layout: Layout, seed: int) -> None:
        sizes = np.diff(rows.offsets) - 1
        if layout.encoder is not None:
            sizes = sizes + np.where(rows.prompts > 0, np.maximum(0, layout.encoder - rows.prompts), 0)
        self.lengths = sorted(lengths)
        self.buckets = np.searchsorted(np.asarray(self.lengths), sizes)
        if (too_long := int((self.buckets == len(self.lengths)).sum())) == len(sizes):
            raise UserError(f"no data: all {too_long} rows are longer than {self.lengths[-1]} tokens (data.lengths)")
        counts = [int((self.buckets == b).sum()) for b in range(len(self.lengths))]
        self.per_epoch = sum(count // batch_size for count in counts)
        if not self.per_epoch:
            raise UserError(f"no data: {sum(counts)} rows fill no batch of {batch_size} (batch_size)")
        self.batch_size = batch_size
        self.seed = seed
        self._epoch: tuple[int, list[tuple[int, Ints]]] | None = None

    def batch(self, number: int) -> tuple[int, Ints]:
        """(sequence length, row indices) of batch `number` of the run."""
        epoch, index = divmod(number, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffle(epoch))
        return self._epoch[1][index]

    def _shuffle(self, epoch: int) -> list[tuple[int, Ints]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.buckets))
        batches = []
        for bucket, length in enumerate(self.lengths):
            mine = order[self.buckets[order] == bucket]
            full = len(mine) // self.batch_size * self.batch_size
            batches += [(length, part) for part in mine[:full].reshape(-1, self.batch_size)]
        rng.shuffle(batches)  # type: ignore[arg-type]
        return batches


def collate(rows: Rows, indices: Ints, length: int, layout: Layout, seed: tuple[int, ...] | None) -> Batch:
    """Lay rows into a batch of `length` positions; `seed` decides the masked tokens, None masks none."""
    shape = (len(indices), length)
    inputs = np.zeros(shape, dtype=np.int64)  # behind a row's end any token will do: nothing before it can see it
    labels = np.full(shape, IGNORE, dtype=np.int64)
    answers = np.zeros(shape, dtype=np.bool_)
    real = np.zeros(shape, dtype=np.bool_)
    left_pads = np.zeros(len(indices), dtype=np.int64)
    for i, index in enumerate(indices):
        tokens, flags, prompt = rows.row(int(index))
        pad = layout.left_pad(prompt)
        end = pad + len(tokens) - 1
        inputs[i, :pad] = PAD
        inputs[i, pad:end] = tokens[:-1]
        labels[i, pad:end] = tokens[1:]
        answers[i, pad:end] = flags[1:]
        real[i, pad:end] = True
        left_pads[i] = pad
    labels[:, : layout.first_position] = IGNORE
    weights = np.where(answers, 1.0, layout.context_weight).astype(np.float32) * (labels != IGNORE)
    masked = np.full(shape, IGNORE, dtype=np.int64)
    if seed is not None and layout.encoder is not None and layout.mask_probability > 0:
        rng = np.random.default_rng(seed)
        chosen = real & (rng.random(shape) < layout.mask_probability)
        chosen[:, layout.encoder :] = False
        masked[chosen] = inputs[chosen]
        inputs[chosen] = layout.mask_token
    return Batch(inputs, labels, weights, answers & (labels != IGNORE), masked, left_pads)
