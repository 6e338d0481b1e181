"""Time against length, log-log, one line per form: forward on the left, with gradients on the right."""

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

    operators = list(dict.fromkeys(row.operator for row in rows if row.operator in ("prefill", "gradients")))
    figure = Figure(figsize=(6.5 * len(operators), 5), layout="constrained")
    names = list(dict.fromkeys(row.name for row in rows if row.operator == "prefill"))
    for axes, operator in zip(figure.subplots(1, len(operators), squeeze=False)[0], operators, strict=True):
        for i, name in enumerate(names):
            line = sorted((r.length, r.seconds * 1e3) for r in rows if (r.operator, r.name) == (operator, name))
            if line:
                width = 2.5 if name.startswith(OURS) else 1.2
                axes.plot(*zip(*line, strict=True), marker="o", label=name, linewidth=width, color=f"C{i}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("milliseconds")
        axes.set_title("forward" if operator == "prefill" else "forward and backward")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
