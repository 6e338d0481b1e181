"""Which rows form which batch, and how rows become arrays. Both are pure functions of (seed, number)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jrt_eval.data.rows import IGNORED_LABEL, TokenRows
from jrt_eval.errors import UserError
from jrt_eval.models.recurrent.model import PAD_TOKEN

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How rows are placed in a batch.

    encoder: the encoder length M for the JRT objective, else None. A row whose prompt is shorter than M is left-padded so
        that its prompt ends at M, as in evaluation; all other rows begin at position 0. Labels before the first scored
        position are masked out of the loss.
    tail: if not 0, the encoder reads all but `tail` positions of a batch shorter than M + tail, as if M were that short.
        Otherwise short rows would cost as much as long ones.
    boundary, context_weight, per_row, mask_probability, mask_token: see `jrt_eval.training.config.Objective`.
    """

    encoder: int | None = None
    boundary: bool = False
    tail: int = 0
    context_weight: float = 1.0
    per_row: bool = False
    mask_probability: float = 0.0
    mask_token: int = 0

    def encoded(self, length: int) -> int:
        """How many positions the encoder reads in a batch of this length."""
        if self.encoder is None:
            return 0
        return min(self.encoder, length - self.tail) if self.tail else self.encoder

    def first_position(self, length: int) -> int:
        """The first position whose next-token prediction is scored."""
        return max(0, self.encoded(length) - self.boundary)


@dataclass(frozen=True)
class Batch:
    """Arrays (rows, length); left_pads and encoder_lengths are (rows,).

    labels: the next token, or IGNORED_LABEL where it is not scored. weights: the loss weight of each label. answers: which labels
    belong to an answer. masked: the original token where the input was masked, else IGNORED_LABEL.
    """

    inputs: Ints
    labels: Ints
    weights: npt.NDArray[np.float32]
    answers: npt.NDArray[np.bool_]
    masked: Ints
    left_pads: Ints
    encoder_lengths: Ints

    @property
    def tokens(self) -> int:
        return int(self.inputs.size)


class Plan:
    """An endless, shuffled sequence of batches of row indices.

    An epoch is a random permutation of all rows, cut into batches of rows of similar length, in random order. Rows that
    fill no batch are left out of that epoch. Before the first epoch there are `opening` batches in which the lengths are
    introduced one by one, shortest first, since what is learnt on short rows helps with long ones.
    """

    def __init__(
        self, rows: TokenRows, lengths: list[int], batch_size: int, layout: Layout, seed: int, opening: int = 0
    ) -> None:
        sizes = np.diff(rows.offsets) - 1
        self.lengths = sorted(lengths)
        self.buckets = np.full(len(sizes), len(self.lengths))
        for bucket, length in reversed(list(enumerate(self.lengths))):
            encoded = layout.encoded(length)
            padded = sizes + np.where(rows.prompts > 0, np.maximum(0, encoded - rows.prompts), 0)
            whole = np.minimum(rows.prompts, layout.encoder or 0) <= encoded
            self.buckets[(padded <= length) & whole] = bucket
        if (too_long := int((self.buckets == len(self.lengths)).sum())) == len(sizes):
            raise UserError(f"no data: all {too_long} rows are longer than {self.lengths[-1]} tokens (data.lengths)")
        counts = [int((self.buckets == b).sum()) for b in range(len(self.lengths))]
        self.per_epoch = sum(count // batch_size for count in counts)
        if not self.per_epoch:
            raise UserError(f"no data: {sum(counts)} rows fill no batch of {batch_size} (batch_size)")
        self.batch_size = batch_size
        self.seed = seed
        self._epoch: tuple[int, list[tuple[int, Ints]]] | None = None
        self._opening = self._short_first(opening) if opening else []

    def batch(self, number: int) -> tuple[int, Ints]:
        """(sequence length, row indices) of batch `number` of the run."""
        if number < len(self._opening):
            return self._opening[number]
        epoch, index = divmod(number - len(self._opening), self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            batches = [batch for bucket in self._permuted([self.seed, epoch]) for batch in bucket]
            np.random.default_rng([self.seed, epoch, 1]).shuffle(batches)  # type: ignore[arg-type]
            self._epoch = (epoch, batches)
        return self._epoch[1][index]

    def position(self, number: int) -> dict[str, int]:
        """The position of a run after `number` batches, for people to read."""
        epoch, batch = divmod(max(0, number - len(self._opening)), self.per_epoch)
        return {"opening": min(number, len(self._opening)), "epoch": epoch, "batch": batch}

    def _permuted(self, seed: list[int]) -> list[list[tuple[int, Ints]]]:
        """For each length that fills a batch, all its batches."""
        order = np.random.default_rng(seed).permutation(len(self.buckets))
        result = []
        for bucket, length in enumerate(self.lengths):
            mine = order[self.buckets[order] == bucket]
            if full := len(mine) // self.batch_size * self.batch_size:
                result.append([(length, part) for part in mine[:full].reshape(-1, self.batch_size)])
        return result

    def _short_first(self, count: int) -> list[tuple[int, Ints]]:
        by_length = self._permuted([self.seed, 0, 2])
        rng = np.random.default_rng([self.seed, 0, 3])
        taken = [0] * len(by_length)
        result = []
        for number in range(count):
            known = [len(batches) for batches in by_length[: 1 + number * len(by_length) // count]]
            bucket = int(rng.choice(len(known), p=np.asarray(known) / sum(known)))
            result.append(by_length[bucket][taken[bucket] % known[bucket]])
            taken[bucket] += 1
        return result


def collate(rows: TokenRows, indices: Ints, length: int, layout: Layout, seed: tuple[int, ...] | None) -> Batch:
    """Place rows in a batch of `length` positions. `seed` determines the masked tokens; None masks none."""
    shape = (len(indices), length)
    inputs = np.zeros(shape, dtype=np.int64)  # after a row's end: no earlier position sees it
    labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    flagged = np.zeros(shape, dtype=np.float32)
    real = np.zeros(shape, dtype=np.bool_)
    left_pads = np.zeros(len(indices), dtype=np.int64)
    encoded = layout.encoded(length)
    for i, index in enumerate(indices):
        tokens, flags, prompt = rows.row(int(index))
        pad = max(0, encoded - prompt) if prompt else 0
        end = pad + len(tokens) - 1
        inputs[i, :pad] = PAD_TOKEN
        inputs[i, pad:end] = tokens[:-1]
        labels[i, pad:end] = tokens[1:]
        flagged[i, pad:end] = flags[1:]
        real[i, pad:end] = True
        left_pads[i] = pad
    labels[:, : layout.first_position(length)] = IGNORED_LABEL
    answers = flagged > 0
    weights = np.where(answers, flagged, layout.context_weight).astype(np.float32) * (labels != IGNORED_LABEL)
    if layout.per_row:
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-8)
    masked = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    if seed is not None and encoded and layout.mask_probability > 0:
        rng = np.random.default_rng(seed)
        chosen = real & (rng.random(shape) < layout.mask_probability)
        chosen[:, encoded:] = False
        masked[chosen] = inputs[chosen]
        inputs[chosen] = layout.mask_token
    return Batch(
        inputs, labels, weights, answers & (labels != IGNORED_LABEL), masked, left_pads, np.full(len(indices), encoded)
    )
