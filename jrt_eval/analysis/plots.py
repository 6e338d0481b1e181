"""The plots, as matplotlib figures: column width, colour-blind safe (Okabe and Ito's colours, and markers beside
colour).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.statistics import POOLED, Comparison
from jrt_eval.analysis.tables import choose_metric, dataset_name, replacing
from jrt_eval.errors import UserError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES: dict[str, dict[str, Any]] = {
    "screen": {"font.family": "sans-serif", "font.size": 10, "width": 6.4, "axes.grid": True},
    "paper": {"font.family": "serif", "font.size": 8, "width": 3.3, "axes.grid": False},  # one column of two
}
COSTS = {"state_bytes": "state per sequence (bytes)", "tokens_per_second": "tokens per second"}


def gain_plot(comparison: Comparison, style: str = "screen") -> Figure:
    """Gain per task with its 95% interval, a colour and marker per model; the pooled gain stands last."""
    table = comparison.table
    tasks = [t for t in dict.fromkeys(table["dataset"]) if t != POOLED]
    tasks += [POOLED] if POOLED in set(table["dataset"]) else []
    models = list(dict.fromkeys(table["model"]))
    with _figure(style, 0.5 + 0.22 * (len(tasks) * (len(models) + 0.7))) as (figure, axes):
        step = 0.8 / max(len(models), 1)
        for index, model in enumerate(models):
            rows = table[table["model"] == model].set_index("dataset").reindex(tasks)
            height = [-(position + (index - (len(models) - 1) / 2) * step) for position in range(len(tasks))]
            gain, low, high = (100 * rows[name].astype(float) for name in ("gain", "low", "high"))
            spread = [(gain - low).fillna(0).clip(lower=0), (high - gain).fillna(0).clip(lower=0)]
            axes.errorbar(
                gain, height, xerr=spread, fmt=_marker(index), color=COLORS[index % 7], capsize=2, markersize=4,
                linewidth=1.2, label=short_names(models)[model],
            )  # fmt: skip
        axes.axvline(0, color="#808080", linewidth=0.8)
        axes.set_yticks([-p for p in range(len(tasks))], [dataset_name(t) for t in tasks])
        axes.set_xlabel(f"gain in {comparison.metric}, points: {_arms(comparison)}")
        axes.set_ylim(0.6 - len(tasks), 0.6)
        if POOLED in tasks and len(tasks) > 1:
            axes.axhline(1.5 - len(tasks), color="#808080", linewidth=0.5, linestyle=":")
        axes.grid(False, axis="y")
        _legend(figure, axes)
    return figure


def gain_by_plot(bins: dict[str, pd.DataFrame], what: str, style: str = "screen") -> Figure:
    """Gain in bins of something (`gain_by` per model), at each bin's middle."""
    with _figure(style) as (figure, axes):
        for index, (model, frame) in enumerate(bins.items()):
            middle = (frame["low_edge"] + frame["high_edge"]) / 2
            gain, low, high = (100 * frame[name].astype(float) for name in ("gain", "low", "high"))
            color = COLORS[index % 7]
            label = short_names(bins)[model]
            axes.plot(middle, gain, marker=_marker(index), color=color, label=label, markersize=4)
            axes.fill_between(middle.to_numpy(), low.to_numpy(), high.to_numpy(), color=color, alpha=0.15, linewidth=0)
        axes.axhline(0, color="#808080", linewidth=0.8)
        axes.set_xlabel(what if style == "screen" else fill(what, 42))
        axes.set_ylabel("gain, points")
        _legend(figure, axes)
    return figure


def length_plot(results: Results, metric: str | None = None, style: str = "screen") -> Figure | None:
    """Accuracy against context length, mean over the data sets that have every length; None with a single length.

    Solid: read once; dashed: read twice.
    """
    metric = choose_metric(results, metric)
    scores = _scores(results, metric)
    scores = scores[scores["variant"].notna() & scores["context_length"].notna()]
    curves = []
    for (model, variant), part in scores.groupby(["model", "variant"]):
        wide = part.pivot_table(index="context_length", columns="dataset", values="value", aggfunc="last")
        wide = wide.dropna(axis=1)
        if len(wide) > 1 and wide.shape[1]:
            curves.append((str(model), str(variant), wide.mean(axis=1)))
    if not curves:
        return None
    models = list(dict.fromkeys(model for model, _, _ in curves))
    with _figure(style) as (figure, axes):
        for model, variant, means in curves:
            index = models.index(model)
            label = short_names(models)[model] + (", twice" if variant == "twice" else "")
            axes.plot(
                means.index.astype(float), 100 * means, linestyle="-" if variant == "once" else "--", label=label,
                marker=_marker(index), color=COLORS[index % 7], markersize=4,
            )  # fmt: skip
        lengths = sorted({float(v) for _, _, means in curves for v in means.index})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{v:.0f}" for v in lengths])
        axes.minorticks_off()
        axes.set_xlabel("context length (tokens)")
        axes.set_ylabel(f"{metric}, percent")
        _legend(figure, axes, always=True)
    return figure


def cost_plot(results: Results, cost: str, metric: str | None = None, style: str = "screen") -> Figure | None:
    """Accuracy against `state_bytes` or `tokens_per_second`, a point per model and variant; None where it is not
    known.
    """
    metric = choose_metric(results, metric)
    scores = _scores(results, metric)
    scores = scores[scores["variant"].notna() & scores[cost].notna()]
    if scores.empty:
        return None
    points = scores.groupby(["model", "variant"]).agg({"value": "mean", cost: "last"}).reset_index()
    models = list(dict.fromkeys(points["model"]))
    from matplotlib.ticker import EngFormatter

    with _figure(style) as (figure, axes):
        for index, model in enumerate(models):
            part = points[points["model"] == model].set_index("variant")
            color, marker = COLORS[index % 7], _marker(index)
            axes.plot(part[cost].astype(float), 100 * part["value"], color=color, linewidth=1, zorder=1)
            for variant, row in part.iterrows():
                face = color if variant == "once" else "white"
                label = short_names(models)[model] if variant == part.index[0] else None
                axes.scatter(float(row[cost]), 100 * row["value"], marker=marker, edgecolors=color, facecolors=face,
                             s=30, zorder=2, label=label)  # fmt: skip
        values = points[cost].astype(float)
        axes.set_xscale("log" if values.max() > 10 * values.min() else "linear")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel(f"{metric}, percent\nfilled: once, open: twice")
        _legend(figure, axes, always=True)
    return figure


def save(figure: Figure, path: Path) -> None:
    """To a PNG, SVG or PDF file, by its ending; whole or not at all."""
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise UserError(f"{path}: a plot's file ends in .png, .svg or .pdf")
    with replacing(path) as new:
        figure.savefig(new, dpi=300, **_metadata(path.suffix))


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for HTML: its ink takes the page's text colour, its ids begin with `name`."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, **_metadata(".svg"))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    return re.sub(r'<svg([^>]*?) height="[^"]*"', r'<svg\1 role="img"', svg, count=1)


_INK = "#1b1b1f"  # axes and text; no other mark has this colour, so that it can be replaced in SVG


@contextmanager
def _figure(style: str, height: float | None = None) -> Iterator[tuple[Figure, Any]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if style not in STYLES:
        raise UserError(f"unknown style {style!r}{nearest(style, list(STYLES))}: it can be {', '.join(STYLES)}")
    settings: Any = dict(STYLES[style])
    width = settings.pop("width")
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3, "grid.linewidth": 0.5}
    settings |= {"axes.linewidth": 0.8, "legend.frameon": False, "pdf.fonttype": 42, "axes.axisbelow": True}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, max(height or 0.0, 0.66 * width)), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _legend(figure: Any, axes: Any, always: bool = False) -> None:
    """Above the axes, in as many columns as the figure is wide."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or always:
        size = figure.bbox.width * 72 / figure.dpi  # points
        entry = (max(map(len, labels)) * 0.6 + 4.5) * (axes.xaxis.label.get_size() or 10)  # text, handle and gap
        columns = max(1, min(len(labels), 3, int(size // entry)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _marker(index: int) -> str:
    """A marker that differs between models of one colour, when there are more models than colours."""
    return MARKERS[(index + index // len(COLORS)) % len(MARKERS)]


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Models without their organisation or folder, where they still differ."""
    names = {model: _shortened(model) for model in models}
    return names if len(set(names.values())) == len(names) else {model: model for model in names}


def _shortened(model: str) -> str:
    name, bracket, rest = model.partition(" (")
    return name.rstrip("/").rsplit("/", 1)[-1] + bracket + rest


def _arms(comparison: Comparison) -> str:
    first, second = comparison.arms
    return f"{second} less {first}" if first == "once" else "second less first"


def _scores(results: Results, metric: str) -> pd.DataFrame:
    scores = results.scores
    scores = scores[(scores["metric"] == metric) & ~scores["group"].fillna(False).astype(bool)]
    scores = scores.astype({"model": object, "dataset": object, "variant": object, "metric": object})
    return scores.assign(full=scores["limit"].isna()).sort_values(["full", "time"])


def _metadata(suffix: str) -> dict[str, Any]:
    """No date in SVG and PDF, so that the same numbers make the same file."""
    return {".svg": {"metadata": {"Date": None}}, ".pdf": {"metadata": {"CreationDate": None}}}.get(suffix, {})
