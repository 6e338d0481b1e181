"""Log-log plots of time against length or batch size, one line per implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jrt_eval.bench import cuda, kernels
from jrt_eval.bench.model import ModelTiming
from jrt_eval.errors import UserError

MARKERS = "os^D"  # the next marker after all ten colours


@dataclass(frozen=True)
class Panel:
    """One plot of a figure: name -> points (x, seconds)."""

    title: str
    label: str  # of the x axis
    lines: dict[str, list[tuple[int, float]]]


def _figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'jrt-eval[report]', or pass --no-plot") from error
    return Figure(layout="constrained", **options)


def draw(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG with all panels and one legend, slowest implementation first. Each has the same colour and marker in all panels.

    Raises UserError if matplotlib is missing.
    """
    figure = _figure(figsize=(5.5 * len(panels) + 3, 5))
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    drawn = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in panel.lines.items():
            x, seconds = zip(*sorted(points), strict=True)
            width = 2.5 if name.startswith("jrt-eval") else 1.2
            number = names.index(name)
            color, marker = f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)]
            (drawn[name],) = axes.plot(x, [each * 1e3 for each in seconds], marker=marker, linewidth=width, color=color)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(panel.label)
        axes.set_ylabel("milliseconds")
        axes.set_title(panel.title)
        axes.grid(True, which="both", alpha=0.3)
    last = {name: max(points)[1] for panel in reversed(panels) for name, points in panel.lines.items()}
    order = sorted(names, key=lambda name: -last[name])
    figure.legend([drawn[name] for name in order], order, loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def time_against_length(rows: list[kernels.CpuTiming], path: Path, title: str) -> None:
    """The forward pass on the left, forward and backward pass on the right."""
    panels = []
    for operator, head in (("prefill", "forward"), ("gradients", "forward and backward")):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row.operator == operator:
                lines.setdefault(row.name, []).append((row.length, row.seconds))
        if lines:
            panels.append(Panel(head, "tokens", lines))
    draw(panels, path, title)


def sweeps(rows: list[cuda.GpuTiming], batch: int, path: Path, title: str) -> None:
    """Time against length on the left, against batch size on the right."""
    lengths: dict[str, list[tuple[int, float]]] = {}
    batches: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.sweep == "decode" or row.seconds is None:
            continue
        if row.sweep == "length":
            lengths.setdefault(row.name, []).append((row.length, row.seconds))
        if row.length == cuda.LENGTH:
            batches.setdefault(row.name, []).append((row.batch, row.seconds))
    panels = [
        Panel(f"batch {batch}", "tokens", lengths),
        Panel(f"{cuda.LENGTH:,} tokens", "batch", batches),
    ]
    draw([panel for panel in panels if panel.lines], path, title)


def whole_models(results: Mapping[str, Sequence[ModelTiming]], length: int, path: Path) -> None:
    """Two bars for each model, prefill on the left and decode steps on the right: tokens per second of each backend."""
    figure = _figure(figsize=(3 + 1.6 * len(results), 4))
    names = {"torch": "PyTorch's operators", "auto": "jrt-eval's kernels"}
    panels = zip(figure.subplots(1, 2), (f"prefill, {length:,} tokens", "decoding, one row"), strict=True)
    for number, (axes, title) in enumerate(panels):
        for place, backend in enumerate(names):
            runs = [next(run for run in runs if run.backend == backend) for runs in results.values()]
            rates = [1 / run.step_seconds if number else length / run.prefill_seconds for run in runs]
            at = [i + 0.4 * place - 0.2 for i in range(len(runs))]
            bars = axes.bar(at, rates, 0.38, label=names[backend])
            axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize="small")
        axes.set_xticks(range(len(results)), list(results), rotation=20)
        axes.set_title(title)
        axes.set_ylabel("tokens/s")
        axes.margins(y=0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=100)
