"""The sections of a training configuration that say where rows come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jrt_eval.errors import UserError


@dataclass
class Synthetic:
    """Generated rows: `name` is documents, set_disjointness or mqar; `options` are that generator's own."""

    name: str
    rows: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """Where rows come from: exactly one of `files`, `dataset` and `synthetic`.

    files: paths or globs of .txt, .jsonl or .parquet files; `field` is the column with text. Documents are joined by the
        end-of-text token and cut into rows of the longest of `lengths`. Records with `prompt` and `completion` fields
        (text) make one row each instead, as generated rows do.
    dataset: an id for `datasets.load_dataset`, with `subset` and `split`.
    lengths: sequence lengths in tokens; a row goes to the shortest that holds it.
    """

    lengths: list[int]
    files: list[str] | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    synthetic: Synthetic | None = None

    def check(self, where: str) -> None:
        """Raise `UserError` unless there is one source and every length is sensible; `where` names this section."""
        given = [key for key in ("files", "dataset", "synthetic") if getattr(self, key)]
        if len(given) != 1:
            found = ", ".join(given) if given else "none"
            raise UserError(f"{where}: give exactly one of files, dataset and synthetic (found {found})")
        if not self.lengths or not 2 <= min(self.lengths) <= max(self.lengths) <= 1 << 24:
            raise UserError(f"{where}.lengths: give at least one length from 2 to {1 << 24}, got {self.lengths[:10]}")

    @property
    def is_text(self) -> bool:
        """Whether rows are made of text, which needs a tokenizer."""
        return self.synthetic is None or self.synthetic.name == "documents"

    def describe(self) -> str:
        """The source in a few words, for messages."""
        return repr(self.synthetic.name if self.synthetic else self.dataset or self.files)
