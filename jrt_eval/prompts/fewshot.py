"""Few-shot examples for documents that have several questions each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from jrt_eval.errors import UserError


class OtherDocuments(ContextSampler):  # type: ignore[misc]
    """Draws examples from other documents than the one asked.

    lm-eval's own sampler leaves out the row that is asked, but another row of the same document would tell its text.
    """

    def sample(
        self, n: int, eval_doc: dict[str, Any] | None = None, df: Any = None, **kwargs: Any
    ) -> Sequence[dict[str, Any]]:
        """`n` answered rows, none of which shares a name in `jrt_document` with `eval_doc`; `UserError` if too few."""
        if n == 0:
            return []
        if not hasattr(self, "_names"):
            self._answered = [doc for doc in self.df if doc["jrt_answers"]]
            self._names = [frozenset(doc["jrt_document"]) for doc in self._answered]
        asked = frozenset(eval_doc["jrt_document"]) if eval_doc else frozenset()
        pool = [index for index, names in enumerate(self._names) if names.isdisjoint(asked)]
        if len(pool) < n:
            raise UserError(
                f"{n} few-shot examples asked for, but only {len(pool)} rows are of another document than row "
                f"{eval_doc['jrt_row'] if eval_doc else '?'}: lower --num_fewshot"
            )
        return [self._answered[index] for index in self.rnd.sample(pool, n)]
