"""`report`: one HTML file that needs no network: the conclusion, the tables, the plots, and a browser of documents.

Text of documents and models reaches the page in two ways: through Jinja with autoescape, and as gzipped, base64-encoded
JSON that the page's script unpacks and inserts as text only. The page's content security policy runs no other script.

The JSON is an index (questions, answers, generations, scores), read when the page opens, and chunks of prompts, read
when a document is looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from jrt_eval._version import __version__
from jrt_eval.analysis import plots
from jrt_eval.analysis.comparison import POOLED, Comparison, compare_variants, gain_by
from jrt_eval.analysis.documents import document_data
from jrt_eval.analysis.failures import failure_table, tells_correct
from jrt_eval.analysis.grid import depth_grids, grid_table, has_grid
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.notes import counted
from jrt_eval.analysis.select import paired_metric, score_metric, single_tasks
from jrt_eval.analysis.table import Table
from jrt_eval.analysis.tables import (
    comparison_unit,
    cost_table,
    failures_as_table,
    gain_by_table,
    gain_table,
    length_table,
    overview_table,
    prompt_table,
    scores_table,
    version_warnings,
)
from jrt_eval.analysis.tree import grouped
from jrt_eval.errors import UserError
from jrt_eval.files import write_text

BY = {
    "doc_tokens": "tokens of the document",
    "prompt_chars": "characters of the prompt read once",
    "answer_depth": "place of the answer in the passage, 0 to 1",
    "answer_distance_tokens": "tokens between the answer and the question",
    "answer_distance": "characters between the answer and the passage's end",
}


@dataclass
class Parts:
    """What a report consists of: sentences that conclude, tables and figures by file name, warnings.

    metric: None if there are no samples. comparison: None if nothing was read both once and twice.
    """

    conclusions: list[str]
    overview: Table
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metric: str | None = None
    comparison: Comparison | None = None


def make_parts(
    results: Results,
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    published: bool = False,
    style: str = "screen",
) -> Parts:
    """All tables and figures that the results allow. Raises UserError.

    Results without samples have score tables only; results without read-twice tasks have no gains.
    """
    sampled = any(unit.metrics for unit in results.units)
    chosen = paired_metric(results, metric) if sampled else score_metric(results, metric)
    notes = [*results.notes, *grouped(results.skipped)]
    comparison = None
    read = set(single_tasks(results.scores)["variant"].dropna())
    if sampled and {"once", "twice"} <= read:
        try:
            comparison = compare_variants(results, metric=chosen, filter_name=filter_name)
        except UserError as error:  # both are there, but of different models or windows: the rest can be shown
            notes.append(str(error))
    elif not sampled:
        notes.append("no samples: run lm_eval with --log_samples to see gains with intervals, and documents")
    parts = Parts(_conclusions(comparison), overview_table(results, comparison), notes=notes, comparison=comparison)
    parts.metric = chosen if sampled else None
    if comparison is not None:
        parts.figures["gain"] = plots.gain_plot(comparison, style)
        parts.tables["gain"] = gain_table(comparison)
    _add_score_tables(parts, results, chosen, filter_name, published, read)
    if comparison is not None:
        for column, what in by_columns(comparison):
            bins = gain_by(comparison, column)
            parts.figures[f"gain_by_{column}"] = plots.gain_by_plot(bins, what, comparison, style)
            parts.tables[f"gain_by_{column}"] = gain_by_table(bins, what, comparison)
        _add_grid_and_costs(parts, comparison, style)
    for name, make in plots.SCORE_PLOTS.items():
        figure = make(results, chosen, style) if read else None
        if figure is not None:
            parts.figures[name] = figure
    if sampled and tells_correct(results, chosen):
        parts.tables["failures"] = failures_as_table(failure_table(results, chosen, filter_name=filter_name), chosen)
    parts.notes += version_warnings(results)
    parts.notes += [note for name in ("prompt", "gain") if name in parts.tables for note in parts.tables[name].notes]
    parts.notes = list(dict.fromkeys(parts.notes))
    return parts


def _add_grid_and_costs(parts: Parts, comparison: Comparison, style: str) -> None:
    if has_grid(comparison):
        grids = depth_grids(comparison)
        parts.figures["grid"] = plots.grid_plot(grids, comparison, style)
        parts.tables["grid"] = grid_table(grids, comparison)
    if comparison.table[[f"second_{cost}" for cost in plots.EXTRA_COSTS]].notna().any(axis=None):
        parts.tables["cost"] = cost_table(comparison)
    for cost in plots.EXTRA_COSTS:
        figure = plots.gain_cost_plot(comparison, cost, style)
        if figure is not None:
            parts.figures[f"gain_{cost}"] = figure


def _add_score_tables(
    parts: Parts, results: Results, metric: str, filter_name: str | None, published: bool, read: set[str]
) -> None:
    singles = single_tasks(results.scores)
    if read and metric in set(singles.loc[singles["variant"].notna(), "metric"]):
        parts.tables["prompt"] = prompt_table(results, metric=metric, published=published, filter_name=filter_name)
        if singles.loc[singles["variant"].notna(), "context_length"].nunique(dropna=False) > 1:
            parts.tables["length"] = length_table(results, metric=metric, published=published, filter_name=filter_name)
    parts.tables["scores"] = scores_table(results)


def _conclusions(comparison: Comparison | None) -> list[str]:
    """A sentence per model: what the second reading changed, and whether that is more than chance."""
    if comparison is None:
        return []
    unit = comparison_unit(comparison)
    lines = []
    table = comparison.table
    for model, rows in table.groupby("model", sort=True):
        pooled = rows[rows["dataset"] == POOLED]
        row = (pooled if len(pooled) else rows).iloc[0]
        first, second, gain, low, high = (unit.of(row[name]) for name in ("first", "second", "gain", "low", "high"))
        digits, percent = unit.decimals, "%" if unit.share else ""
        if row["p_adjusted"] >= 0.05:
            verdict = "no change beyond chance"
            if row["detectable"] == row["detectable"]:
                found = f"{unit.of(row['detectable']):.{digits}f} {unit.points}"
                verdict += f"; these documents would have shown one of {found}"
        else:
            verdict = "better" if (gain > 0) == comparison.higher_is_better else "worse"
            verdict += ", beyond chance"
        lines.append(
            f"{model}: {first:.{digits}f}{percent} read once, {second:.{digits}f}{percent} read twice. "
            f"{gain:+.{digits}f} {unit.points} (95% interval {low:+.{digits}f} to {high:+.{digits}f}, "
            f"{counted(int(row['documents']), 'document')}): {verdict}."
        )
    return lines


def by_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """The columns of pairs that gains can be shown against: tokens where they are known, else characters."""
    columns = []
    for names in (("doc_tokens", "prompt_chars"), ("answer_depth",), ("answer_distance_tokens", "answer_distance")):
        known = [name for name in names if comparison.pairs[name].nunique() > 1]
        columns += [(name, BY[name]) for name in known[:1]]
    return columns


def write_report(
    results: Results,
    out: str | os.PathLike[str],
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    published: bool = False,
    title: str | None = None,
) -> None:
    """Write the page to `out`; it appears whole or not at all. Raises UserError."""
    target = Path(out)
    if target.is_dir():
        raise UserError(f"{target} is a folder: --out names an HTML file")
    page = render(results, metric=metric, filter_name=filter_name, published=published, title=title)
    write_text(target, page)


CAPTIONS = {
    "gain": "Gain per task with its 95% interval",
    "length": "Score against context length",
    "state_bytes": "Score against state size",
    "prompt_tokens": "Score against prompt length",
    "document_seconds": "Score against time",
    "tokens_per_second": "Score against throughput",
    "grid": "Score by the answer's depth and the context length",
    "gain_tokens": "Gain against its cost in prompt tokens",
    "gain_seconds": "Gain against its cost in time",
}


def render(
    results: Results,
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    published: bool = False,
    title: str | None = None,
) -> str:
    """The page as text. Raises UserError."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    parts = make_parts(results, metric=metric, filter_name=filter_name, published=published)
    folder = Path(__file__).parent / "report_page"
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    documents = None
    if parts.metric is not None:
        documents = document_data(results, parts.metric, filter_name=filter_name)
        if parts.comparison is not None:
            documents.index |= {"share": parts.comparison.share, "higher": parts.comparison.higher_is_better}
        if documents.shown < documents.total:
            shown = f"the documents below are the first of each task: {documents.shown:,} of {documents.total:,} predictions"
            parts.notes.append(shown)
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    figures = [
        (CAPTIONS.get(name) or f"Gain by {BY[name.removeprefix('gain_by_')]}", Markup(plots.inline_svg(figure, name)))
        for name, figure in parts.figures.items()
    ]
    singles = single_tasks(results.scores)
    sizes = [counted(singles["model"].nunique(), "model"), counted(singles["task"].nunique(), "task")]
    sizes.append(counted(sum(unit.rows for unit in results.units), "prediction"))
    default = "Recall, read once and twice" if parts.comparison is not None else "Evaluation results"
    return environment.get_template("page.html.j2").render(
        title=title or default,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        parts=parts,
        lead=figures[:1] if parts.comparison is not None else [],
        figures=figures[1:] if parts.comparison is not None else figures,
        summary=", ".join(sizes),
        index=_pack(documents.index) if documents is not None else None,
        chunks=[_pack(chunk) for chunk in documents.chunks()] if documents is not None else [],
        version=__version__,
    )


def _pack(value: Any) -> str:
    return base64.b64encode(gzip.compress(orjson.dumps(value), 6, mtime=0)).decode()
