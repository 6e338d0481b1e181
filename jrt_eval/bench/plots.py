"""Time against length, log-log, one line per form."""

from __future__ import annotations

from pathlib import Path

from jrt_eval.bench.kernels import OURS, Row
from jrt_eval.errors import UserError


def time_against_length(rows: list[Row], path: Path, title: str) -> None:
    """Write a PNG. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'jrt-eval[report]', or pass --no-plot") from error

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row.name for row in rows if row.operator == "prefill"))
    for name in names:
        line = sorted((row.length, row.seconds * 1e3) for row in rows if row.operator == "prefill" and row.name == name)
        ours = name.startswith(OURS)
        axes.plot(*zip(*line, strict=True), marker="o", label=name, linewidth=2.5 if ours else 1.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("milliseconds")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
