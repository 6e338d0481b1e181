"""Set disjointness (JRT paper, section 3 and figure 2): which token do two sets share?

The input is `[1] A [2] B [3]`; the answer is the one token that A and B share. A causal model has to remember A while it
reads B, which needs a state that grows with |A|, so the order of a short and a long set matters. For a non-causal model
it does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jrt_eval.data.rows import IGNORED_LABEL

VOCABULARY = 2048
MASK, PREFIX, BETWEEN, ANSWER = 0, 1, 2, 3
RESERVED = 4

# (|A|, |B|) of the training mixture, 20,000 examples each, and of the evaluation, 1,000 each.
TRAINING = (
    *((4, 16), (16, 4), (8, 32), (32, 8), (64, 16), (16, 64)),
    *((4, 128), (128, 4), (16, 256), (256, 16), (4, 256), (256, 4)),
)
EVALUATION = (
    *((1, 32), (32, 1), (4, 32), (32, 4), (4, 128), (128, 4), (16, 256), (256, 16), (4, 256), (256, 4)),
    *((16, 512), (512, 16), (4, 512), (512, 4), (8, 768), (768, 8), (16, 768), (768, 16), (4, 768), (768, 4)),
)
TRAINING_EXAMPLES, EVALUATION_EXAMPLES = 20_000, 1_000

Ints = npt.NDArray[np.int64]


def examples(first: int, second: int, count: int, seed: int, vocabulary: int = VOCABULARY) -> tuple[Ints, Ints]:
    """`count` examples with |A| = first and |B| = second.

    Returns inputs (count, first + second + 3) and answers (count,). The tokens other than 0..3 are shuffled and halved. A
    is drawn from one half and B from the other, without replacement; then a random element of A overwrites a random
    position of B. Raises `ValueError` if a set does not fit half of the vocabulary.
    """
    half = (vocabulary - RESERVED) // 2
    if max(first, second) > half:
        raise ValueError(f"a set of {max(first, second)} does not fit half a vocabulary of {vocabulary}: {half} tokens")
    rng = np.random.default_rng([seed, first, second])
    inputs = np.empty((count, first + second + 3), dtype=np.int64)
    answers = np.empty(count, dtype=np.int64)
    tokens = np.arange(RESERVED, vocabulary)
    for i in range(count):
        shuffled = rng.permutation(tokens)
        a, b = shuffled[:first], shuffled[half : half + second]
        answers[i] = a[rng.integers(first)]
        b[rng.integers(second)] = answers[i]
        inputs[i] = np.concatenate([[PREFIX], a, [BETWEEN], b, [ANSWER]])
    return inputs, answers


def labels(inputs: Ints, answers: Ints) -> Ints:
    """Labels in place of inputs (count, length): `IGNORED_LABEL` except at the last position, which has the answer."""
    result = np.full_like(inputs, IGNORED_LABEL)
    result[:, -1] = answers
    return result
