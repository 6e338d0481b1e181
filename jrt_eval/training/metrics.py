"""Metrics of a run: CSV files that survive a kill, TensorBoard if it is installed, and a progress bar."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.files import reason, write_text

log = logging.getLogger(__name__)


class MetricsFile:
    """A CSV file with one row per step. Rows after `step`, which a resumed run will repeat, are removed at the start."""

    def __init__(
        self, path: Path, columns: tuple[str, ...], step: int, tensorboard: Any = None, prefix: str = ""
    ) -> None:
        self.path, self.columns, self.tensorboard, self.prefix = path, columns, tensorboard, prefix
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows_until(step))
        write_text(path, text.getvalue())

    def _rows_until(self, step: int) -> list[dict[str, Any]]:
        try:
            with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.DictReader(file))
        except (OSError, csv.Error):
            return []
        return [row for row in rows if (found := row.get("step") or "").isdecimal() and int(found) <= step]

    def add(self, **values: float) -> None:
        """Append a row; `step` is one of the values."""
        row = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {reason(error)}; the checkpoints are unchanged") from error
        if self.tensorboard is not None:
            for name, value in values.items():
                if name != "step":
                    self.tensorboard.add_scalar(self.prefix + name, value, values["step"])


def tensorboard_writer(folder: Path) -> Any:
    """TensorBoard's writer, or None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed: metrics go to CSV files only (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]


def progress_bar(steps: int, start: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, unit="step", disable=not shown, dynamic_ncols=True)
