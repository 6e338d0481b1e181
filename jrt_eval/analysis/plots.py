"""The plots, as matplotlib figures: column width, colour-blind safe (Okabe and Ito's colours, each with its own marker)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from jrt_eval.analysis.comparison import POOLED, Comparison
from jrt_eval.analysis.escape import printable
from jrt_eval.analysis.grid import Grid
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.notes import Notes
from jrt_eval.analysis.runs import VARIANTS
from jrt_eval.analysis.select import chosen_scores, score_metric
from jrt_eval.analysis.tables import Unit, comparison_unit, dataset_name
from jrt_eval.errors import UserError, nearest
from jrt_eval.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES: dict[str, dict[str, Any]] = {
    "screen": {"font.family": "sans-serif", "font.size": 10, "width": 6.4, "axes.grid": True},
    "paper": {"font.family": "serif", "font.size": 8, "width": 3.15, "axes.grid": False},  # 8 cm: one column of two
}
COSTS = {
    "state_bytes": "state per sequence (bytes)",
    "prompt_tokens": "prompt tokens per document",
    "document_seconds": "seconds per document",
    "tokens_per_second": "generated tokens per second",
}
"""Columns of scores that scores are plotted against."""

EXTRA_COSTS = {"tokens": "more prompt tokens per document", "seconds": "more seconds per document"}
"""What the second arm of a comparison costs more than the first: `first_x` and `second_x` of its table."""


def gain_plot(comparison: Comparison, style: str = "screen") -> Figure:
    """Gain per task with its 95% interval, a colour and marker per model; the pooled gain is last."""
    table, unit = comparison.table, comparison_unit(comparison)
    tasks = [t for t in dict.fromkeys(table["dataset"]) if t != POOLED]
    tasks += [POOLED] if POOLED in set(table["dataset"]) else []
    models = list(dict.fromkeys(table["model"]))
    names = short_names(models)
    with _figure(style, 0.5 + 0.22 * (len(tasks) * (len(models) + 0.7))) as (figure, axes):
        step = 0.8 / max(len(models), 1)
        for index, model in enumerate(models):
            rows = table[table["model"] == model].set_index("dataset").reindex(tasks)
            height = [-(place + (index - (len(models) - 1) / 2) * step) for place in range(len(tasks))]
            _intervals(axes, rows, unit, height, index, names[model], horizontal=True)
        axes.axvline(0, color=_GREY, linewidth=0.8)
        axes.set_yticks([-p for p in range(len(tasks))], [plain_text(dataset_name(t)) for t in tasks])
        axes.set_xlabel(_gain_label(comparison, unit))
        axes.set_ylim(0.6 - len(tasks), 0.6)
        if POOLED in tasks and len(tasks) > 1:
            axes.axhline(1.5 - len(tasks), color=_GREY, linewidth=0.5, linestyle=":")
        axes.grid(False, axis="y")
        _legend(figure, axes)
    return figure


def gain_by_plot(bins: dict[str, pd.DataFrame], what: str, comparison: Comparison, style: str = "screen") -> Figure:
    """Gain in bins of something (`gain_by`), at each bin's middle, the models next to each other."""
    unit = comparison_unit(comparison)
    names = short_names(bins)
    with _figure(style) as (figure, axes):
        span = max((f["high_edge"].max() for f in bins.values()), default=1.0)
        span -= min((f["low_edge"].min() for f in bins.values()), default=0.0)
        widest = max((len(frame) for frame in bins.values()), default=1)
        step = 0.5 * span / max(widest, 1) / max(len(bins), 1)  # within half a mean bin
        for index, (model, frame) in enumerate(bins.items()):
            middle = (frame["low_edge"] + frame["high_edge"]) / 2 + (index - (len(bins) - 1) / 2) * step
            _intervals(axes, frame, unit, list(middle), index, names[model], horizontal=False)
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.set_xlabel(what if style == "screen" else fill(what, 42))
        axes.set_ylabel(_gain_label(comparison, unit) if style == "screen" else fill(_gain_label(comparison, unit), 26))
        _legend(figure, axes)
    return figure


def length_plot(results: Results, metric: str | None = None, style: str = "screen") -> Figure | None:
    """Score against context length, mean over the data sets that have every length; None with a single length.

    Solid: read once; dashed: read twice.
    """
    metric = score_metric(results, metric)
    scores = chosen_scores(results, metric, Notes())
    scores = scores[scores["variant"].notna() & scores["context_length"].notna()]
    unit = Unit(metric, scores["value"])
    curves = []
    for (model, variant), part in scores.groupby(["label", "variant"]):
        wide = part.pivot_table(index="context_length", columns="shown", values="value", aggfunc="last")
        wide = wide.dropna(axis=1)
        if len(wide) > 1 and wide.shape[1]:
            curves.append((str(model), str(variant), wide.mean(axis=1)))
    if not curves:
        return None
    models = list(dict.fromkeys(model for model, _, _ in curves))
    names = short_names(models)
    with _figure(style) as (figure, axes):
        for model, variant, means in curves:
            index = models.index(model)
            label = names[model] + ("" if variant == "once" else f", {variant}")
            axes.plot(
                means.index.astype(float), [unit.of(v) for v in means], linestyle="-" if variant == "once" else "--",
                label=label, marker=_marker(index), color=COLORS[index % 7], markersize=4,
            )  # fmt: skip
        lengths = sorted({float(v) for _, _, means in curves for v in means.index})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{v:.0f}" for v in lengths])
        axes.minorticks_off()
        axes.set_xlabel("context length (tokens)")
        axes.set_ylabel(plain_text(unit.title))
        _legend(figure, axes, always=True)
    return figure


def cost_plot(results: Results, cost: str, metric: str | None = None, style: str = "screen") -> Figure | None:
    """Score against one of COSTS, a point per model and variant: means over the data sets that all points have.

    A line joins one model's points. None where fewer than two points have a cost that differs.
    """
    metric = score_metric(results, metric)
    scores = chosen_scores(results, metric, Notes())
    scores = scores[scores["variant"].notna() & scores[cost].notna()]
    keys = ["label", "variant"]
    read = scores.groupby("shown")["value"].transform("size") == scores.groupby(keys).ngroups
    scores = scores[read.astype(bool)]
    points = scores.groupby(keys, sort=False).agg({"value": "mean", cost: "mean"}).reset_index()
    if points[cost].nunique() < 2:
        return None
    unit = Unit(metric, scores["value"])
    models = sorted(points["label"].unique())
    names = short_names(models)
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    with _figure(style) as (figure, axes):
        for index, model in enumerate(models):
            part = points[points["label"] == model]
            part = part.sort_values("variant", key=lambda column: column.map(order))
            color = COLORS[index % 7]
            values = [unit.of(v) for v in part["value"]]
            axes.plot(part[cost].astype(float), values, color=color, linewidth=1, zorder=1)
            for row, value in zip(part.to_dict("records"), values, strict=True):
                filled = row["variant"] == "once"
                point = axes.scatter(
                    float(row[cost]), value, marker=_marker(index), edgecolors=color, s=30, zorder=2,
                    facecolors=color if filled else _PAPER,
                    label=names[model] if row["variant"] == part["variant"].iloc[0] else None,
                )  # fmt: skip
                point.set_gid(_tip(f"{names[model]}, {row['variant']}: {value:.{unit.decimals}f} at {row[cost]:.4g}"))
        _cost_axis(axes, points[cost].astype(float), COSTS[cost])
        kinds = "filled: once, open: others" if "once" in set(points["variant"]) else ""
        axes.set_ylabel(plain_text(unit.title) + (f"\n{kinds}" if kinds else ""))
        _legend(figure, axes, always=True)
    return figure


def gain_cost_plot(comparison: Comparison, cost: str, style: str = "screen") -> Figure | None:
    """Gain with its 95% interval against one of EXTRA_COSTS, a point per model and task.

    None where no cost is known, or all are equal. Models are drawn next to each other where their costs are equal.
    """
    table, unit = comparison.table[comparison.table["dataset"] != POOLED], comparison_unit(comparison)
    extra = table[f"second_{cost}"] - table[f"first_{cost}"]
    table = table.assign(extra=extra)[extra.notna()]
    if table["extra"].round(6).nunique() < 2:
        return None
    step = 0.012 * float(table["extra"].max() - table["extra"].min())
    models = list(dict.fromkeys(table["model"]))
    names = short_names(models)
    with _figure(style) as (figure, axes):
        for index, model in enumerate(models):
            part = table[table["model"] == model]
            places = list(part["extra"] + (index - (len(models) - 1) / 2) * step)
            _intervals(axes, part, unit, places, index, names[model], horizontal=False)
        axes.axhline(0, color=_GREY, linewidth=0.8)
        _cost_axis(axes, table["extra"], EXTRA_COSTS[cost], linear=True)
        axes.set_ylabel(_gain_label(comparison, unit) if style == "screen" else fill(_gain_label(comparison, unit), 26))
        _legend(figure, axes)
    return figure


def grid_plot(grids: Sequence[Grid], comparison: Comparison, style: str = "screen") -> Figure:
    """Depth grids as heat maps: a row per model and task, and the first arm, the second arm and their difference next to each other.

    The rows of a map are depths, from the context's start down to its end. An empty cell is blank.
    """
    unit = comparison_unit(comparison)
    names = short_names([grid.model for grid in grids])
    first, second = comparison.arms if comparison.arms[0] in VARIANTS else ("first", "second")
    titles = (f"read {first}", f"read {second}") if first in VARIANTS else (first, second)
    scores = [unit.of(v) for grid in grids for side in (grid.first, grid.second) for v in side.ravel()]
    known = [v for v in scores if v == v]
    gains = [abs(unit.of(v)) for grid in grids for v in grid.gain.ravel() if v == v]
    span = max(gains, default=0.0) or 1.0
    low, high = (0.0, 100.0) if unit.share else (min(known), max(known))
    width = STYLES[style]["width"] if style in STYLES else 0.0
    height = len(grids) * (0.5 + 0.16 * max(3, len(grids[0].depths)) * (1.0 if style == "screen" else 0.8)) + 0.7
    with _axes(style, height, (len(grids), 3)) as (figure, axes):
        for row, grid in enumerate(grids):
            maps = [(grid.first, low, high, "viridis"), (grid.second, low, high, "viridis")]
            maps.append((grid.gain, -span, span, "RdBu"))
            for column, (values, least, most, colors) in enumerate(maps):
                ax = axes[row][column]
                shown = [[unit.of(v) for v in line] for line in values]
                image = ax.imshow(shown, vmin=least, vmax=most, cmap=colors, aspect="auto")
                _cells(ax, shown, image, signed=column == 2, width=(width - 1.1) / 3, style=style)
                ax.set_xticks(range(len(grid.lengths)), grid.lengths, rotation=0 if len(grid.lengths) < 4 else 90)
                ax.set_yticks(range(len(grid.depths)), grid.depths if column == 0 else [])
                ax.grid(False)
                ax.spines[:].set_visible(False)
                ax.tick_params(length=0)
                if row == 0:
                    ax.set_title(plain_text((*titles, "difference")[column]), fontsize="medium")
                if row < len(grids) - 1:
                    ax.set_xticklabels([])
                if row == len(grids) - 1 and column in (1, 2):
                    pair = [axes[r][c] for r in range(len(grids)) for c in ((0, 1) if column == 1 else (2,))]
                    figure.colorbar(image, ax=pair, location="bottom", aspect=30 if column == 1 else 15, pad=0.04)
            whose = [names[grid.model]] if len(names) > 1 else []
            whose += [plain_text(dataset_name(grid.task))] if grid.task else []
            axes[row][0].set_ylabel("\n".join(fill(text, 16) for text in whose))
        figure.supylabel("answer's depth (0: start, 1: end)", fontsize="medium")
        figure.supxlabel(f"context length (tokens); colours: {plain_text(unit.title)}", fontsize="medium")
    return figure


def _cells(axes: Any, values: list[list[float]], image: Any, *, signed: bool, width: float, style: str) -> None:
    """Write the numbers into a heat map's cells where they fit. width: of the map, in inches."""
    room = width * 72 / max(len(values[0]), 1)  # points per cell
    size = 7.0 if style == "screen" else 5.5
    if room < 3.2 * size * 0.6:
        return
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value == value:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{value:+.0f}" if signed and round(value) else f"{value:.0f}"
                text = text if abs(image.norm.vmax) > 1 else f"{value:.2f}"
                color = "#ffffff" if dark else "#000000"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def _cost_axis(axes: Any, values: pd.Series, label: str, linear: bool = False) -> None:
    """A cost along x: logarithmic where it spans more than a factor of ten, unless it must be linear."""
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    axes.set_xscale("log" if values.max() > 10 * values.min() > 0 and not linear else "linear")
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if values.max() >= 1000 else StrMethodFormatter("{x:g}"))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel(label)


# name -> (results, metric, style) -> figure or None; the report shows what is not None
SCORE_PLOTS: dict[str, Callable[[Results, str, str], Any]] = {
    "length": lambda results, metric, style: length_plot(results, metric, style),
    "state_bytes": lambda results, metric, style: cost_plot(results, "state_bytes", metric, style),
    "prompt_tokens": lambda results, metric, style: cost_plot(results, "prompt_tokens", metric, style),
    "document_seconds": lambda results, metric, style: cost_plot(results, "document_seconds", metric, style),
    "tokens_per_second": lambda results, metric, style: cost_plot(results, "tokens_per_second", metric, style),
}


def save(figure: Figure, path: Path) -> None:
    """To a PNG, SVG or PDF file, by its ending; whole or not at all. Raises UserError."""
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise UserError(f"{path}: a plot's file ends in .png, .svg or .pdf")
    with replacing(path) as new:
        figure.savefig(new, dpi=300, **_metadata(path.suffix))


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for HTML: its ink takes the page's text colour, its ids begin with `name`.

    Marks with a tip (`_tip`) get a `<title>`, which browsers show on hover.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, **_metadata(".svg"))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_PAPER, "var(--paper, #ffffff)")
    svg = re.sub(rf'<g id="{_TIP}([0-9a-f]*)(?:_\d+)?">', _titled, svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    return re.sub(r'<svg([^>]*?) height="[^"]*"', r'<svg\1 role="img"', svg, count=1)


_INK = "#1b1b1f"  # axes and text; no other mark has this colour, so that it can be replaced in SVG
_PAPER = "#fefefe"  # what is left open; the page's background in SVG
_GREY = "#808080"
_TIP = "tip-"


def _tip(text: str) -> str:
    """An SVG id that holds the text of a tip."""
    return _TIP + text.encode().hex()


def _titled(match: re.Match[str]) -> str:
    return f'<g class="tip"><title>{escape(bytes.fromhex(match[1]).decode())}</title>'


def plain_text(text: str) -> str:
    """Text that matplotlib does not read as mathematics, without control characters."""
    return printable(text).replace("$", r"\$")


def _intervals(
    axes: Any, rows: pd.DataFrame, unit: Unit, places: list[float], index: int, label: str, *, horizontal: bool
) -> None:
    """Points with their intervals, one model's."""
    color = COLORS[index % 7]
    for number, (place, row) in enumerate(zip(places, rows.to_dict("records"), strict=True)):
        gain, low, high = (unit.of(row[name]) for name in ("gain", "low", "high"))
        if gain != gain:
            continue
        spread = [[max(gain - low, 0)], [max(high - gain, 0)]] if low == low else None
        point = (
            {"x": [gain], "y": [place], "xerr": spread} if horizontal else {"x": [place], "y": [gain], "yerr": spread}
        )
        drawn = axes.errorbar(
            **point, fmt=_marker(index), color=color, capsize=2, markersize=4, linewidth=1.2,
            label=label if number == 0 else None,
        )  # fmt: skip
        interval = "" if low != low else f" [{low:+.{unit.decimals}f}, {high:+.{unit.decimals}f}]"
        drawn.lines[0].set_gid(_tip(f"{label}: {gain:+.{unit.decimals}f}{interval}, n = {int(row['n'])}"))


@contextmanager
def _figure(style: str, height: float | None = None) -> Iterator[tuple[Figure, Any]]:
    """A figure with one pair of axes."""
    with _axes(style, height or 0.0, (1, 1), least=0.66) as (figure, axes):
        yield figure, axes[0][0]


@contextmanager
def _axes(style: str, height: float, shape: tuple[int, int], least: float = 0.0) -> Iterator[tuple[Figure, Any]]:
    """A figure with rows and columns of axes. height: inches, at least `least` of the width."""
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
        figure = Figure(figsize=(width, max(height, least * width)), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(*shape, squeeze=False)


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
    """Models without their organisation or folder where they still differ, at most 48 characters, as plain text."""
    names = {model: plain_text(_shortened(model)) for model in models}
    if len(set(names.values())) < len(names):
        names = {model: plain_text(model) for model in names}
    short = {model: name if len(name) <= 48 else name[:45] + "..." for model, name in names.items()}
    return short if len(set(short.values())) == len(short) else names


def _shortened(model: str) -> str:
    name, bracket, rest = model.partition(" (")
    if not bracket:
        name, bracket, rest = model.partition(" [")
    return name.rstrip("/").rsplit("/", 1)[-1] + bracket + rest


def _gain_label(comparison: Comparison, unit: Unit) -> str:
    first, second = comparison.arms
    if len(first) + len(second) > 24:
        first, second = "first", "second"
    what = "gain" if comparison.higher_is_better else "change"
    points = "" if unit.points == comparison.metric else f", {unit.points}"
    lower = "" if comparison.higher_is_better else "; lower is better"
    return plain_text(f"{what} in {comparison.metric}{points}: {second} − {first}{lower}")


def _metadata(suffix: str) -> dict[str, Any]:
    """No date in SVG and PDF, so that the same numbers make the same file."""
    return {".svg": {"metadata": {"Date": None}}, ".pdf": {"metadata": {"CreationDate": None}}}.get(suffix, {})
