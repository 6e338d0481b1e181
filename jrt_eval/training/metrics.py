"""Metrics of a run: a CSV that survives a kill and is cut back on resuming, TensorBoard if it is installed."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger("jrt_eval.training")


class Metrics:
    """Rows of one CSV file, keyed by step; rows behind `step` are dropped at the start."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int, board: Any = None, prefix: str = "") -> None:
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [
                    row for row in csv.DictReader(file) if (row["step"] or "x").isdigit() and int(row["step"]) <= step
                ]
        self.path, self.columns, self.board, self.prefix = path, columns, board, prefix
        partial = path.with_suffix(".part")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)
        partial.rename(path)

    def add(self, **values: float) -> None:
        """Append a row; `step` is one of the values."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
            )
        if self.board is not None:
            for name, value in values.items():
                if name != "step":
                    self.board.add_scalar(self.prefix + name, value, values["step"])


class Board:
    """TensorBoard's writer, or nothing where it is not installed or not wanted."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.writer: Any = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.info("TensorBoard is not installed: metrics go to CSV only (pip install tensorboard)")
                return
            self.writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def __enter__(self) -> Any:
        return self.writer

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.close()
