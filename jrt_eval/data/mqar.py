"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927, section 3 and appendix).

A sequence begins with `pairs` keys and their values, `k1 v1 k2 v2 ...`. Later each key appears again, as a query, and the
model has to predict its value. Distances follow a power law, so most queries come early.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jrt_eval.data.rows import IGNORED_LABEL

VOCABULARY = 8192
FILL = 0

Ints = npt.NDArray[np.int64]


def examples(
    length: int, pairs: int, count: int, seed: int, vocabulary: int = VOCABULARY, power: float = 0.01
) -> tuple[Ints, Ints]:
    """`count` sequences of `length` tokens with `pairs` keys: inputs and labels, both (count, length).

    The first 2 * pairs tokens are keys (from the lower half of the vocabulary) and values (from the upper half), without
    repetition. Every second of the remaining positions may hold a query; the g-th of them does so with probability
    proportional to g^(power - 1). The label at a query is its value and `IGNORED_LABEL` elsewhere. All other tokens
    are 0. Raises `ValueError` if the pairs do not fit.
    """
    places = (length - 2 * pairs) // 2
    if pairs < 1 or places < pairs:
        raise ValueError(f"{pairs} pairs need a length of at least {4 * pairs} tokens, got {length}")
    if vocabulary // 2 - 1 < pairs:
        raise ValueError(f"{pairs} pairs do not fit a vocabulary of {vocabulary}")
    rng = np.random.default_rng([seed, length, pairs])
    weights = np.arange(1, places + 1, dtype=np.float64) ** (power - 1)
    weights /= weights.sum()
    inputs = np.full((count, length), FILL, dtype=np.int64)
    labels = np.full((count, length), IGNORED_LABEL, dtype=np.int64)
    for i in range(count):
        keys = rng.choice(np.arange(1, vocabulary // 2), pairs, replace=False)
        values = rng.choice(np.arange(vocabulary // 2, vocabulary), pairs, replace=False)
        inputs[i, 0 : 2 * pairs : 2] = keys
        inputs[i, 1 : 2 * pairs : 2] = values
        at = 2 * pairs + 2 * rng.choice(places, pairs, replace=False, p=weights)
        inputs[i, at] = keys
        labels[i, at] = values
    return inputs, labels
