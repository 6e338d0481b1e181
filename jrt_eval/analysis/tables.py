"""The paper's table forms from scores, and each table as terminal text, Markdown, LaTeX, CSV or parquet.

    prompt_table   Table 1: models x data sets, read once and twice, average and gain
    length_table   Table 2: models x (data set, context length)
    gain_table     a paired comparison: gain, interval and p per task
    overview_table a row per model: pooled scores, size, and what it was run with

Numbers are percent. A table's average is over all its data sets, and missing for a model that lacks one.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from jrt_eval.analysis.load import Results
from jrt_eval.analysis.published import published_for
from jrt_eval.analysis.statistics import PREFERRED, Comparison
from jrt_eval.errors import UserError, nearest

FORMATS = ("terminal", "markdown", "latex", "csv", "parquet")
PAPER = "paper"
OURS = "measured"
_ORDER = ["fda", "swde", "nq_512", "nq_1024", "nq_2048", "squad", "triviaqa", "drop"]  # as the paper's columns stand
_NAMES = {"fda": "FDA", "swde": "SWDE", "squad": "SQuAD", "triviaqa": "TriviaQA", "drop": "DROP", "nq": "NQ"}


@dataclass
class Table:
    """A table to show: `frame` has text columns first (`labels` of them), then numbers; `best` names columns with a
    best value.

    Column names are `(over, under)`: the two header lines. title: one line. notes: warnings that belong below it.
    """

    title: str
    frame: pd.DataFrame
    labels: int
    best: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decimals: int = 1

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [self._text(value, column >= self.labels) for column, value in enumerate(row)]
            for row in self.frame.itertuples(index=False, name=None)
        ]

    def is_best(self) -> list[list[bool]]:
        """Which cells hold their column's best value; a column whose values are all equal has none."""
        marks = [[False] * self.frame.shape[1] for _ in range(len(self.frame))]
        for name in self.best:
            column = self.columns().index(name)
            shown = [None if _missing(v) else round(float(v), self.decimals) for v in self.frame[name]]
            known = [v for v in shown if v is not None]
            if len(set(known)) > 1:
                for row, value in enumerate(shown):
                    marks[row][column] = value == max(known)
        return marks

    def columns(self) -> list[tuple[str, str]]:
        """The two header lines, column by column."""
        return [(str(name[0]), str(name[1])) for name in self.frame.columns]

    def spans(self) -> list[tuple[str, int]]:
        """The upper header line as (text, columns that it spans)."""
        spans: list[tuple[str, int]] = []
        for over, _ in self.columns():
            if spans and spans[-1][0] == over:
                spans[-1] = (over, spans[-1][1] + 1)
            else:
                spans.append((over, 1))
        return spans

    def number_at(self, span: int) -> bool:
        """Whether the span with this index stands over numbers."""
        return sum(width for _, width in self.spans()[:span]) >= self.labels

    def two_lines(self) -> bool:
        """Whether the lower header line says anything."""
        return any(over != under for over, under in self.columns())

    def headers(self) -> list[str]:
        """The two header lines as one."""
        return [f"{over} {under}".strip() if over != under else over for over, under in self.columns()]

    def markdown(self) -> str:
        """A GitHub table."""
        bold = self.is_best()
        head = [h.replace("|", "\\|") for h in self.headers()]
        rule = ["---"] * self.labels + ["---:"] * (len(head) - self.labels)
        rows = [
            [f"**{_md(cell)}**" if mark else _md(cell) for cell, mark in zip(cells, marks, strict=True)]
            for cells, marks in zip(self.cells(), bold, strict=True)
        ]
        lines = ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]
        return "\n".join([f"**{_md(self.title)}**", "", *lines, *[f"\n{_md(note)}" for note in self.notes]]) + "\n"

    def latex(self) -> str:
        """A booktabs table, its best values in bold; needs \\usepackage{booktabs}."""
        columns = self.columns()
        over, rules, start = [], [], 1
        for name, width in self.spans():
            over.append(f"\\multicolumn{{{width}}}{{c}}{{{_tex(name)}}}" if width > 1 else _tex(name))
            rules += [f"\\cmidrule(lr){{{start}-{start + width - 1}}}"] if width > 1 else []
            start += width
        under = [_tex(low) if low != high else "" for high, low in columns]
        lines = [
            "\\begin{table}[t]",
            "\\centering",
            f"\\caption{{{_tex(self.title)}}}",
            "\\small",
            f"\\begin{{tabular}}{{{'l' * self.labels}{'r' * (len(columns) - self.labels)}}}",
            "\\toprule",
            " & ".join(over) + r" \\",
        ]
        if any(under):
            lines += [" ".join(rules), " & ".join(under) + r" \\"]
        lines.append("\\midrule")
        for cells, marks in zip(self.cells(), self.is_best(), strict=True):
            shown = [f"\\textbf{{{_tex(c)}}}" if mark else _tex(c) for c, mark in zip(cells, marks, strict=True)]
            lines.append(" & ".join(shown) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}", *[f"\\\\ \\footnotesize {_tex(n)}" for n in self.notes]]
        return "\n".join([*lines, "\\end{table}"]) + "\n"

    def terminal(self, width: int | None = None, color: bool | None = None) -> str:
        """A table for a terminal, the best values bold."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(
            title=self.title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1)
        )
        for index, (high, low) in enumerate(self.columns()):
            text = Text(high if high == low or not low else f"{high}\n{low}")
            shown.add_column(text, justify="left" if index < self.labels else "right", overflow="fold")
        for cells, marks in zip(self.cells(), self.is_best(), strict=True):
            shown.add_row(*[Text(c, style="bold" if mark else "") for c, mark in zip(cells, marks, strict=True)])
        natural = 4 + sum(
            max([len(c) for c in column] + [len(p) for p in header]) + 3
            for column, header in zip(zip(*self.cells(), strict=True), self.columns(), strict=True)
        )
        console = Console(width=width or max(natural, 60), force_terminal=color, highlight=False)
        with console.capture() as capture:
            console.print(shown)
            for note in self.notes:
                console.print(Text(note, style="dim"), soft_wrap=True)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def flat(self) -> pd.DataFrame:
        """The frame with one line of plain column names: `fda_once`, `gain`, ..."""
        frame = self.frame.copy()
        frame.columns = pd.Index([_plain(high, low) for high, low in self.columns()])
        return frame

    def render(self, form: str) -> str:
        """As text: terminal, markdown, latex or csv."""
        if form == "csv":
            return str(self.flat().to_csv(index=False, lineterminator="\n"))
        texts = {"terminal": self.terminal, "markdown": self.markdown, "latex": self.latex}
        if form not in texts:
            raise UserError(f"unknown format {form!r}{nearest(form, list(FORMATS))}: it can be {', '.join(FORMATS)}")
        return texts[form]()

    def write(self, path: str | os.PathLike[str]) -> None:
        """To a file, in the form that its ending names: .md, .tex, .csv, .parquet, .txt; whole or not at all."""
        forms = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".parquet": "parquet", ".txt": "terminal"}
        target = Path(path)
        form = forms.get(target.suffix)
        if form is None:
            raise UserError(f"{target}: a table's file ends in {', '.join(forms)}")
        if form == "parquet":
            with replacing(target) as new:
                self.flat().to_parquet(new, index=False)
        else:
            text = self.terminal(color=False) if form == "terminal" else self.render(form)
            with replacing(target) as new:
                new.write_text(text, encoding="utf-8")

    def _text(self, value: object, number: bool) -> str:
        if _missing(value):
            return "–" if number else ""
        if isinstance(value, float):
            return f"{value:.{self.decimals}f}"
        return str(value)


class replacing:
    """`with replacing(path) as new: write new`: the file appears whole, or stays as it was. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.stem}-", suffix=self.path.suffix, dir=self.path.parent)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None
        os.close(handle)
        self.new = Path(name)
        umask = os.umask(0)
        os.umask(umask)
        self.new.chmod(0o666 & ~umask)
        return self.new

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                os.replace(self.new, self.path)
        except OSError as problem:
            raise UserError(f"cannot write {self.path}: {problem.strerror}") from None
        finally:
            self.new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None


def prompt_table(results: Results, *, metric: str | None = None, published: bool = False) -> Table:
    """Table 1's form. published: the paper's row stands below the user's, where it has one. Raises UserError."""
    chosen, scores, notes = _scores(results, metric)
    scores = scores[scores["variant"].notna()]
    if scores.empty:
        raise UserError(
            "no task here has a read-twice form: run jrt_<name> and jrt_<name>_twice, or the group jrt_prompt"
        )
    lengths = sorted({("whole documents" if pd.isna(v) else f"{v} tokens") for v in scores["context_length"]})
    if len(lengths) > 1:
        notes.append(f"context lengths are mixed ({', '.join(lengths)}): the table by length keeps them apart")
    scores = _unique(scores, ["model", "dataset", "variant"], notes)
    wide = scores.pivot(index="model", columns=["dataset", "variant"], values="value")
    rows = [(str(m), OURS, _parameters(results, str(m)), wide.loc[m]) for m in wide.index]
    if published:
        paper = published_for([str(m) for m in wide.index])
        paper = paper[paper["dataset"].isin(set(scores["dataset"]))]
        if paper.empty:
            notes.append("the paper has none of these models and data sets in Table 1")
        theirs = paper.pivot(index="model", columns=["dataset", "variant"], values="value")
        sizes = dict(zip(paper["model"], paper["params"] + " " + paper["tokens"], strict=True))
        rows += [(str(m), PAPER, sizes[m], theirs.loc[m]) for m in theirs.index]
        if PAPER in {row[1] for row in rows} and chosen != "contains":
            notes.append(f"the paper's numbers are `contains`, these are {chosen}")
        rows.sort(key=lambda row: row[0])
    datasets = _ordered(scores["dataset"].unique())
    variants = [v for v in ("once", "twice") if v in set(scores["variant"])]
    records, columns = [], [("model", "model"), *([("source", "source")] if published else []), ("size", "size")]
    columns += [(dataset_name(d), v) for d in datasets for v in variants]
    averages = [("average", v) for v in variants] if len(datasets) > 1 else []
    columns += averages
    if len(variants) == 2:
        columns.append(("gain", "gain"))
    for model, source, size, values in rows:
        numbers = [_percent(values.get((d, v))) for d in datasets for v in variants]
        means = [
            round(sum(column) / len(column), 9)
            for i in range(len(variants))
            for column in [numbers[i :: len(variants)]]
        ]  # nan where a data set is missing
        record = [model, *([source] if published else []), size, *numbers, *(means if averages else [])]
        if len(variants) == 2:
            record.append(means[1] - means[0])
        records.append(record)
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples(columns))
    best = [c for c in columns if c[0] not in {"model", "source", "size", "gain"}]
    return Table(f"{chosen}, percent: read once and twice", frame, 3 if published else 2, best, notes)


def length_table(results: Results, *, metric: str | None = None, published: bool = False) -> Table:
    """Table 2's form: data set x context length; a row per model and variant. Raises UserError."""
    chosen, scores, notes = _scores(results, metric)
    scores = scores[scores["variant"].notna()]
    if scores.empty:
        raise UserError(
            "no task here has a context length: run the jrt_ tasks, with --metadata context_length=512 and others"
        )
    scores = scores.assign(context_length=scores["context_length"].astype("Int64").fillna(-1))
    scores = _unique(scores, ["model", "dataset", "variant", "context_length"], notes)
    keys = ["dataset", "context_length"]
    wide = scores.pivot(index=["model", "variant"], columns=keys, values="value")
    rows = [(str(m), str(v), OURS, wide.loc[(m, v)]) for m, v in wide.index]
    if published:
        paper = published_for(sorted({str(m) for m, _ in wide.index}), 2)
        paper = paper.assign(context_length=paper["context_length"].astype("Int64").fillna(-1))
        if paper.empty:
            notes.append("the paper has none of these models in Table 2")
        theirs = paper.pivot(index=["model", "variant"], columns=keys, values="value")
        rows += [(str(m), str(v), PAPER, theirs.loc[(m, v)]) for m, v in theirs.index]
        wide = wide.reindex(columns=wide.columns.union(theirs.columns))
    rows.sort(key=lambda row: (row[0], row[1], row[2] != OURS))
    found = [(str(name[0]), int(name[1])) for name in wide.columns]
    order = {d: i for i, d in enumerate(_ordered(d for d, _ in found))}
    cells = sorted(found, key=lambda c: (order[c[0]], c[1] < 0, c[1]))
    columns = [("model", "model"), ("read", "read"), *([("source", "source")] if published else [])]
    columns += [(dataset_name(d), "whole" if n < 0 else str(n)) for d, n in cells] + [("average", "average")]
    records = []
    for model, variant, source, values in rows:
        numbers = [_percent(values.get(cell)) for cell in cells]
        records.append([model, variant, *([source] if published else []), *numbers, sum(numbers) / len(numbers)])
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples(columns))
    labels = 3 if published else 2
    return Table(f"{chosen}, percent: by context length (tokens)", frame, labels, columns[labels:], notes)


def gain_table(comparison: Comparison) -> Table:
    """A comparison as a table: percent, the gain with its 95% interval, and McNemar's p."""
    first, second = comparison.arms
    records = []
    for row in comparison.table.to_dict("records"):
        records.append(
            [
                str(row["model"]),
                dataset_name(str(row["dataset"])),
                int(row["n"]),
                int(row["documents"]),
                _hundred(row["first"]),
                _hundred(row["second"]),
                f"{100 * row['gain']:+.1f}",
                _interval(row),
                int(row["fixed"]),
                int(row["broken"]),
                _p(row["p"]),
            ]
        )
    names = ["model", "task", "n", "documents", first, second, "gain", "95% interval", "fixed", "broken", "p"]
    if first != "once":
        names[4], names[5] = "first", "second"
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples([(n, n) for n in names]))
    title = f"{comparison.metric}, percent: {first} against {second}, paired by document"
    return Table(title, frame, 2, [], list(comparison.warnings))


def overview_table(results: Results, comparison: Comparison | None) -> Table:
    """A row per model: its pooled scores (of a comparison once against twice), and what it was run with."""
    scores = results.scores.astype({"model": object})
    columns = ["model", "size"] + (["once", "twice", "gain", "95% interval"] if comparison is not None else [])
    columns += ["tasks", "dtype", "limit", "lm-eval", "jrt-eval", "last run (UTC)"]
    records: list[list[object]] = []
    for model, part in scores.groupby("model", sort=True):
        record: list[object] = [model, _parameters(results, str(model))]
        if comparison is not None:
            rows = comparison.table[comparison.table["model"] == model]
            if len(rows):
                last = rows.iloc[-1]  # all tasks, or the only one
                gain = f"{100 * last['gain']:+.1f}"
                record += [_hundred(last["first"]), _hundred(last["second"]), gain, _interval(last)]
            else:
                record += [float("nan"), float("nan"), "–", "–"]
        singles = part[~part["group"].fillna(False).astype(bool)]
        record.append(str(singles["task"].nunique()))
        record += [_listed(part[name]) for name in ("dtype", "limit", "lm_eval_version", "jrt_eval_version")]
        record.append("" if part["time"].isna().all() else f"{part['time'].max():%Y-%m-%d %H:%M}")
        records.append(record)
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples([(c, c) for c in columns]))
    title = "Models" if comparison is None else f"Models; {comparison.metric} in percent, over the tasks read both ways"
    return Table(title, frame, 2)


def version_warnings(results: Results) -> list[str]:
    """A line for each version that differs between the runs: scores of two versions may not compare."""
    scores = results.scores[~results.scores["group"].fillna(False).astype(bool)]
    warnings = []
    for column, what in (("lm_eval_version", "lm-eval"), ("jrt_eval_version", "jrt-eval")):
        if scores[column].nunique() > 1:
            warnings.append(f"run with several versions of {what}: {_listed(scores[column])}")
    for task, part in scores.astype({"task": object}).groupby("task", sort=True):
        if part["task_version"].nunique() > 1:
            warnings.append(f"{task}: several versions of the task ({_listed(part['task_version'])})")
    return warnings


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(set(values.dropna())))


def _interval(row: Any) -> str:
    return "–" if math.isnan(row["low"]) else f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def failures_as_table(counts: pd.DataFrame, metric: str) -> Table:
    """`failure_table`'s counts as a table."""
    frame = counts.copy()
    frame["dataset"] = [dataset_name(str(d)) for d in frame["dataset"]]
    frame["variant"] = ["" if _missing(v) else str(v) for v in frame["variant"]]
    names = ["model", "task", "read", "correct", "empty", "repetition", "from document", "not in document", "n"]
    frame.columns = pd.MultiIndex.from_tuples([(n, n) for n in names])
    return Table(f"answers by kind ({metric})", frame, 3)


def gain_by_table(bins: dict[str, pd.DataFrame], what: str, arms: tuple[str, str]) -> Table:
    """`gain_by`'s bins of each model (or pair of models) as a table."""
    records = [
        [
            model,
            _range(row["low_edge"], row["high_edge"]),
            int(row["n"]),
            _hundred(row["first"]),
            _hundred(row["second"]),
            f"{100 * row['gain']:+.1f}",
            _interval(row),
        ]
        for model, frame in bins.items()
        for row in frame.to_dict("records")
    ]
    names = ["model", what, "n", *(arms if arms[0] == "once" else ("first", "second")), "gain", "95% interval"]
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples([(n, n) for n in names]))
    return Table(f"gain by {what}", frame, 2)


def dataset_name(dataset: str) -> str:
    """As the paper writes it."""
    return _NAMES.get(dataset) or (f"NQ-{dataset[3:]}" if dataset.startswith("nq_") else dataset)


def choose_metric(results: Results, metric: str | None) -> str:
    """The metric to tabulate: as asked, else the first known one that most tasks have. Raises UserError."""
    available = [str(m) for m in results.scores["metric"].unique()]
    if metric is not None:
        if metric not in available:
            raise UserError(
                f"no metric {metric!r}{nearest(metric, available)}: there are {', '.join(sorted(available))}"
            )
        return metric
    known = [m for m in PREFERRED if m in available]
    if known or len(available) == 1:
        return (known or available)[0]
    raise UserError(f"several metrics and none that is known: choose one with --metric: {', '.join(sorted(available))}")


def _scores(results: Results, metric: str | None) -> tuple[str, pd.DataFrame, list[str]]:
    chosen = choose_metric(results, metric)
    scores = results.scores
    singles = scores[~scores["group"].fillna(False).astype(bool)]
    found = singles[singles["metric"] == chosen].astype({"model": object, "dataset": object, "variant": object})
    notes = []
    lacking = sorted(set(singles["task"].astype(str)) - set(found["task"].astype(str)))
    if lacking:
        some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        notes.append(f"mixed metrics: {some} have no {chosen} and are left out")
    limited = found[found["limit"].notna()]
    if len(limited):
        models = ", ".join(sorted(set(limited["model"])))
        notes.append(f"with --limit, so not on all documents: {models}")
    return chosen, found, notes


def _unique(scores: pd.DataFrame, keys: list[str], notes: list[str]) -> pd.DataFrame:
    """One score per cell: the newest, without a limit if there is one."""
    if scores.duplicated(keys).any():
        notes.append("several runs of one model and task: the newest without a limit is shown")
        ordered = scores.assign(full=scores["limit"].isna()).sort_values(["full", "time"])
        scores = ordered.drop_duplicates(keys, keep="last")
    return scores


def _parameters(results: Results, model: str) -> str:
    values = results.scores.loc[results.scores["model"] == model, "parameters"].dropna()
    if values.empty:
        return ""
    count = int(values.iloc[0])
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _ordered(datasets: Iterable[object]) -> list[str]:
    names = {str(d) for d in datasets}
    return [d for d in _ORDER if d in names] + sorted(names - set(_ORDER))


def _percent(value: object) -> float:
    return float("nan") if _missing(value) else _hundred(float(value))  # type: ignore[arg-type]


def _hundred(value: float) -> float:
    """Percent without the float noise that would turn 58.75 into 58.7 here and 58.8 there."""
    return round(100 * value, 9)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _range(low: float, high: float) -> str:
    digits = 2 if high <= 1 else 0
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f} to {high:.{digits}f}"


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _plain(high: str, low: str) -> str:
    name = high if high == low or not low else f"{high}_{low}"
    return "".join(c if c.isalnum() else "_" for c in name.lower().replace("%", " percent")).strip("_")


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _tex(text: str) -> str:
    # < > | are other signs in LaTeX's default font encoding
    special = {
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
    }
    return "".join(special.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)
