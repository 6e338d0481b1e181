"""The plots, as matplotlib figures: column width, colour-blind safe (Okabe and Ito's colours, each with its own marker)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from jrt_eval.analysis.comparison import POOLED, Comparison
from jrt_eval.analysis.escape import printable
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.notes import Notes
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
    "tokens_per_second": "tokens per second",
    "seconds": "seconds of the run",
}


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
    """Score against one of COSTS, a point per model and variant; None where fewer than two models recorded it."""
    metric = score_metric(results, metric)
    scores = chosen_scores(results, metric, Notes())
    scores = scores[scores["variant"].notna() & scores[cost].notna()]
    if scores.empty:
        return None
    unit = Unit(metric, scores["value"])
    points = scores.groupby(["label", "variant"]).agg({"value": "mean", cost: "last"}).reset_index()
    models = list(dict.fromkeys(points["label"]))
    names = short_names(models)
    from matplotlib.ticker import EngFormatter

    with _figure(style) as (figure, axes):
        for index, model in enumerate(models):
            part = points[points["label"] == model].set_index("variant")
            color, marker = COLORS[index % 7], _marker(index)
            axes.plot(part[cost].astype(float), [unit.of(v) for v in part["value"]], color=color, linewidth=1, zorder=1)
            for variant, row in part.iterrows():
                label = names[model] if variant == part.index[0] else None
                point = axes.scatter(
                    float(row[cost]), unit.of(row["value"]), marker=marker, edgecolors=color,
                    facecolors=color if variant == "once" else "white", s=30, zorder=2, label=label,
                )  # fmt: skip
                point.set_gid(_tip(f"{names[model]}, {variant}: {unit.of(row['value']):.{unit.decimals}f}"))
        values = points[cost].astype(float)
        axes.set_xscale("log" if values.max() > 10 * values.min() > 0 else "linear")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel(f"{plain_text(unit.title)}\nfilled: once, open: other")
        _legend(figure, axes, always=True)
    return figure


# name -> (results, metric, style) -> figure or None; the report shows what is not None
SCORE_PLOTS: dict[str, Callable[[Results, str, str], Any]] = {
    "length": lambda results, metric, style: length_plot(results, metric, style),
    "state_bytes": lambda results, metric, style: cost_plot(results, "state_bytes", metric, style),
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
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(rf'<g id="{_TIP}([0-9a-f]*)(?:_\d+)?">', _titled, svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    return re.sub(r'<svg([^>]*?) height="[^"]*"', r'<svg\1 role="img"', svg, count=1)


_INK = "#1b1b1f"  # axes and text; no other mark has this colour, so that it can be replaced in SVG
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
