"""Output of the benchmarks: tables, times in a suitable unit, JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol


class Measured(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table with the first column left-aligned and the others right-aligned. A row shorter than the header ends in a remark."""
    whole = [header, *rows]
    widths = [max(len(line[i]) for line in whole if len(line) == len(header)) for i in range(len(header))]
    widths[0] = max(len(line[0]) for line in whole)

    def text(line: list[str]) -> str:
        if len(line) < len(header):
            return "  ".join([line[0].ljust(widths[0]), *line[1:]])
        first, *rest = zip(line, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])

    return "\n".join(text(line).rstrip() for line in whole)


def time_text(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def write(folder: Path, name: str, facts: dict[str, Any], rows: Sequence[Measured]) -> None:
    """Write NAME.json, with facts about the run, and NAME.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [row.as_dict() for row in rows]
    (folder / f"{name}.json").write_text(json.dumps({"machine": facts, "rows": found}, indent=1) + "\n")
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
