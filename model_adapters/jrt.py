"""`--model jrt`."""

from __future__ import annotations

from lm_eval.api.model import LM


class JRTLM(LM):
    pass
