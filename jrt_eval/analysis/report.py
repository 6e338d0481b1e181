"""`report`: one HTML file, without network: the tables, the plots, and a browser of documents.

What documents and models say reaches the page in two ways: through Jinja with autoescape, and as gzipped,
base64-encoded JSON that the page's script unpacks and only ever sets as text. The page's content security policy runs
no other script.

The JSON is an index (questions, answers, generations, scores), read when the page opens, and chunks of prompts, read
when a document is looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from jrt_eval._version import __version__
from jrt_eval.analysis import plots
from jrt_eval.analysis.failures import failure_table
from jrt_eval.analysis.load import Results
from jrt_eval.analysis.schema import METRIC_PREFIX
from jrt_eval.analysis.statistics import Comparison, compare_variants, gain_by_model, pick_metric
from jrt_eval.analysis.tables import (
    Table,
    dataset_name,
    failures_as_table,
    gain_by_table,
    gain_table,
    length_table,
    overview_table,
    prompt_table,
    replacing,
    version_warnings,
)
from jrt_eval.errors import UserError

CHUNK = 100  # documents whose prompts are unpacked together
MOST = 200_000  # predictions that a page takes

BY = {
    "doc_tokens": "tokens of the document",
    "prompt_chars": "characters of the prompt read once",
    "answer_depth": "place of the answer in the passage, 0 to 1",
    "answer_distance_tokens": "tokens between the answer and the question",
    "answer_distance": "characters between the answer and the passage's end",
}


@dataclass
class Parts:
    """What a report is made of: tables and figures by file name, in order, the overview and warnings on top of them."""

    overview: Table
    tables: dict[str, Table]
    figures: dict[str, Any]
    notes: list[str]
    metric: str


def make_parts(results: Results, *, metric: str | None = None, published: bool = False, style: str = "screen") -> Parts:
    """All tables and figures that the results allow. What needs both variants is left out where there is one. Raises
    UserError.
    """
    chosen = pick_metric(results, metric)
    tables: dict[str, Table] = {}
    figures: dict[str, Any] = {}
    notes = list(results.notes)
    if results.skipped:
        notes.append(f"{len(results.skipped)} files were skipped when these results were collected")
    singles = results.scores[~results.scores["group"].fillna(False).astype(bool)]
    variants = singles["variant"].dropna()
    if len(variants):
        tables["prompt"] = prompt_table(results, metric=chosen, published=published)
        windows = singles.loc[singles["variant"].notna(), "context_length"]
        if windows.nunique(dropna=False) > 1:
            tables["length"] = length_table(results, metric=chosen, published=published)
    else:
        tables["scores"] = scores_table(results, chosen)
    comparison = None
    if set(variants) == {"once", "twice"}:
        try:
            comparison = compare_variants(results, metric=chosen)
        except UserError as error:  # both are there, but of different models or windows: the rest can be shown
            notes.append(str(error))
    if comparison is not None:
        tables["gain"] = gain_table(comparison)
        figures["gain"] = plots.gain_plot(comparison, style)
        for column, what in by_columns(comparison):
            bins = gain_by_model(comparison.pairs, column)
            figures[f"gain_by_{column}"] = plots.gain_by_plot(bins, what, style)
            tables[f"gain_by_{column}"] = gain_by_table(bins, what, comparison.arms)
    by_length = plots.length_plot(results, chosen, style)
    if by_length is not None:
        figures["length"] = by_length
    for cost in plots.COSTS:
        figure = plots.cost_plot(results, cost, chosen, style)
        if figure is not None:
            figures[cost] = figure
    known = results.predictions[results.predictions[METRIC_PREFIX + chosen].notna()]
    tables["failures"] = failures_as_table(failure_table(known, chosen), chosen)
    notes += version_warnings(results)
    notes += [note for name in ("prompt", "gain") if name in tables for note in tables[name].notes]
    return Parts(overview_table(results, comparison), tables, figures, list(dict.fromkeys(notes)), chosen)


def by_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """The columns of pairs that gains can be shown against: tokens where they are known, else characters."""
    columns = []
    for names in (("doc_tokens", "prompt_chars"), ("answer_depth",), ("answer_distance_tokens", "answer_distance")):
        known = [name for name in names if comparison.pairs[name].notna().any()]
        columns += [(name, BY[name]) for name in known[:1]]
    return columns


def scores_table(results: Results, metric: str) -> Table:
    """Models x tasks, for results without read-twice tasks."""
    scores = results.scores[(results.scores["metric"] == metric) & ~results.scores["group"].fillna(False).astype(bool)]
    plain = scores.astype({"model": object, "task": object}).sort_values("time")
    wide = 100 * plain.drop_duplicates(["model", "task"], keep="last").pivot(
        index="model", columns="task", values="value"
    )
    frame = wide.reset_index()
    frame.columns = pd.MultiIndex.from_tuples([(str(c), str(c)) for c in frame.columns])
    return Table(f"{metric}, percent", frame, 1, [(str(c), str(c)) for c in wide.columns])


def write_report(
    results: Results,
    out: str | os.PathLike[str],
    *,
    metric: str | None = None,
    published: bool = False,
    title: str = "Recall, read once and twice",
) -> None:
    """Write the page to `out`; it appears whole or not at all. Raises UserError."""
    target = Path(out)
    if target.is_dir():
        raise UserError(f"{target} is a folder: --out names an HTML file")
    page = render(results, metric=metric, published=published, title=title)
    with replacing(target) as new:
        new.write_text(page, encoding="utf-8")


def render(results: Results, *, metric: str | None = None, published: bool = False, title: str) -> str:
    """The page as text. Raises UserError."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    parts = make_parts(results, metric=metric, published=published)
    folder = Path(__file__).parent / "report_page"
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    index, chunks = document_data(results, parts.metric)
    known = int(results.predictions[METRIC_PREFIX + parts.metric].notna().sum())
    if len(index["answers"]) < known:
        parts.notes.append(f"the documents below hold {len(index['answers']):,} of {known:,} predictions")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    captions = {
        "gain": "Gain per task with its 95% interval",
        "length": "Accuracy against context length",
        "state_bytes": "Accuracy against state size",
        "tokens_per_second": "Accuracy against throughput",
    }
    figures = [
        (captions.get(name) or f"Gain by {BY[name.removeprefix('gain_by_')]}", Markup(plots.inline_svg(figure, name)))
        for name, figure in parts.figures.items()
    ]
    singles = results.scores[~results.scores["group"].fillna(False).astype(bool)]
    models, tasks = singles["model"].nunique(), singles["task"].nunique()
    return environment.get_template("page.html.j2").render(
        title=title,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        tables=parts.tables,
        figures=figures,
        overview=parts.overview,
        notes=parts.notes,
        summary=f"{models} models, {tasks} tasks, {len(results.predictions):,} predictions",
        metric=parts.metric,
        index=_pack(index),
        chunks=[_pack(chunk) for chunk in chunks],
        version=__version__,
    )


def document_data(results: Results, metric: str) -> tuple[dict[str, Any], list[list[list[str]]]]:
    """The browser's data: an index, and per chunk of documents the prompts of each.

    index: models, datasets, chunk (size), documents `[dataset, row, key, question, [gold, ...]]` and answers
    `[document, model, variant, score, generation, prompt]`; variant 0 once, 1 twice, 2 neither; prompt indexes the
    document's.
    """
    column = METRIC_PREFIX + metric
    frame = results.predictions
    frame = frame[frame[column].notna()]
    if len(frame) > MOST:
        share = max(1, MOST // max(frame.groupby(["run_id", "task"], observed=True).ngroups, 1))
        frame = frame[frame["row"].rank(method="dense") <= share]
    frame = frame.astype({"dataset": object, "model": object, "variant": object})  # in the order of their names
    frame = frame.sort_values(["dataset", "context_length", "row", "model", "variant"])
    models = [str(m) for m in dict.fromkeys(frame["model"])]
    datasets: dict[tuple[str, int | None], int] = {}
    documents: dict[tuple[int, int], int] = {}
    entries: list[list[Any]] = []
    answers: list[list[Any]] = []
    prompts: list[dict[str, int]] = []
    number = {model: i for i, model in enumerate(models)}
    variants = {"once": 0, "twice": 1}
    names = [
        "dataset",
        "context_length",
        "row",
        "model",
        "variant",
        "doc_key",
        "question",
        "targets",
        "generation",
        "prompt",
    ]
    for values in zip(*[frame[name].astype(object) for name in names], frame[column].astype(float), strict=True):
        dataset, length, row, model, variant, key, question, targets, generation, prompt, score = values
        length = None if pd.isna(length) else int(length)
        where = datasets.setdefault((str(dataset), length), len(datasets))
        document = documents.setdefault((where, int(row)), len(documents))
        if document == len(entries):
            gold = [str(t) for t in targets] if targets is not None else []
            entries.append([where, int(row), _or(key), _or(question), gold])
            prompts.append({})
        elif not entries[document][3]:
            entries[document][3] = _or(question)  # SQuAD's once prompt has no cue of its own
        at = prompts[document].setdefault(_or(prompt), len(prompts[document]))
        kind = variants.get(variant, 2) if isinstance(variant, str) else 2
        answers.append([document, number[str(model)], kind, round(score, 4), _or(generation), at])
    several = {name for name, _ in datasets if sum(other == name for other, _ in datasets) > 1}
    shown = [
        dataset_name(name) + ((f" ({n} tokens)" if n is not None else " (whole)") if name in several else "")
        for name, n in datasets
    ]
    index = {"models": models, "datasets": shown, "chunk": CHUNK, "documents": entries, "answers": answers}
    texts = [list(p) for p in prompts]
    return index, [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]


def _or(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and value != value) else str(value)


def _pack(value: Any) -> str:
    return base64.b64encode(gzip.compress(orjson.dumps(value), 6, mtime=0)).decode()
