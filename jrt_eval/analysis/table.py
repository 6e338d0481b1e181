"""A table of text and numbers, and its forms: terminal, Markdown, LaTeX, CSV and parquet."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from jrt_eval.analysis import escape
from jrt_eval.errors import UserError, nearest
from jrt_eval.files import replacing, write_text

FORMATS = ("terminal", "markdown", "latex", "csv", "parquet")
MISSING = "–"
Name = tuple[str, str]


@dataclass
class Table:
    """A table to show: `frame` has text columns first (`labels` of them), then numbers.

    Column names are `(over, under)`: the two header lines. title: one line. best: columns whose best value is shown in
    bold; it is the highest, or the lowest where `lowest_is_best`. notes: lines below the table. decimals: of floats;
    `places` has those of single columns.
    formats: how the cells of a column are shown if not as plain numbers, by column name:

        signed    a float with its sign
        p         a probability
        interval  (low, high), with signs
        measure   (value, standard error)
        three digits   a float of any size, with three significant digits

    slug: a short name for LaTeX's label and for files; made from the title if empty.
    """

    title: str
    frame: pd.DataFrame
    labels: int
    best: list[Name] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decimals: int = 1
    formats: dict[Name, str] = field(default_factory=dict)
    lowest_is_best: bool = False
    slug: str = ""
    places: dict[Name, int] = field(default_factory=dict)

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        formats = [self.formats.get(name, "") for name in self.columns()]
        places = [self.places.get(name, self.decimals) for name in self.columns()]
        return [
            [
                self._text(value, formats[column], places[column], column >= self.labels)
                for column, value in enumerate(row)
            ]
            for row in self.frame.itertuples(index=False, name=None)
        ]

    def is_best(self) -> list[list[bool]]:
        """Which cells hold their column's best value; a column whose values are all equal has none."""
        marks = [[False] * self.frame.shape[1] for _ in range(len(self.frame))]
        for name in self.best:
            column = self.columns().index(name)
            values = [v[0] if isinstance(v, tuple) else v for v in self.frame.iloc[:, column]]
            shown = [None if missing(v) else round(float(v), self.decimals) for v in values]
            known = [v for v in shown if v is not None]
            if len(set(known)) > 1:
                best = min(known) if self.lowest_is_best else max(known)
                for row, value in enumerate(shown):
                    marks[row][column] = value == best
        return marks

    def columns(self) -> list[Name]:
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
        """Whether the span with this index is over numbers."""
        return sum(width for _, width in self.spans()[:span]) >= self.labels

    def two_lines(self) -> bool:
        """Whether the lower header line says anything."""
        return any(under not in {over, ""} for over, under in self.columns())

    def headers(self) -> list[str]:
        """The two header lines as one."""
        return [f"{over} {under}".strip() if over != under else over for over, under in self.columns()]

    def markdown(self) -> str:
        """A GitHub table."""
        head = [escape.markdown(h) for h in self.headers()]
        rule = ["---"] * self.labels + ["---:"] * (len(head) - self.labels)
        rows = [
            [
                f"**{escape.markdown(cell)}**" if mark else escape.markdown(cell)
                for cell, mark in zip(cells, marks, strict=True)
            ]
            for cells, marks in zip(self.cells(), self.is_best(), strict=True)
        ]
        lines = ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]
        notes = [f"\n{escape.markdown(note)}" for note in self.notes]
        return "\n".join([f"**{escape.markdown(self.title)}**", "", *lines, *notes]) + "\n"

    def latex(self) -> str:
        """A booktabs table with a label, its best values in bold, its notes as one footnote; needs `booktabs`."""
        columns = self.columns()
        over, rules, start = [], [], 1
        for name, width in self.spans():
            over.append(f"\\multicolumn{{{width}}}{{c}}{{{escape.latex(name)}}}" if width > 1 else escape.latex(name))
            rules += [f"\\cmidrule(lr){{{start}-{start + width - 1}}}"] if width > 1 else []
            start += width
        under = [escape.latex(low) if low != high else "" for high, low in columns]
        lines = [
            "\\begin{table}[t]",
            "\\centering",
            f"\\caption{{{escape.latex(self.title)}}}",
            f"\\label{{tab:{self.name()}}}",
            "\\small" if len(columns) < 10 else "\\scriptsize\\setlength{\\tabcolsep}{3pt}",
            f"\\begin{{tabular}}{{{'l' * self.labels}{'r' * (len(columns) - self.labels)}}}",
            "\\toprule",
            " & ".join(over) + r" \\",
        ]
        if any(under):
            lines += [" ".join(rules), " & ".join(under) + r" \\"]
        lines.append("\\midrule")
        for cells, marks in zip(self.cells(), self.is_best(), strict=True):
            shown = [
                f"\\textbf{{{escape.latex(c)}}}" if m else escape.latex(c) for c, m in zip(cells, marks, strict=True)
            ]
            lines.append(" & ".join("{}" + c if c.startswith("[") else c for c in shown) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}"]
        if self.notes:
            told = " ".join(f"{note[:1].upper()}{note[1:]}." for note in self.notes)
            lines.append(f"\n\\par\\smallskip\\footnotesize {escape.latex(told)}")
        return "\n".join([*lines, "\\end{table}"]) + "\n"

    def terminal(self, width: int | None = None, color: bool | None = None) -> str:
        """A table for a terminal, the best values bold."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        cells = [[escape.printable(cell) for cell in row] for row in self.cells()]
        headers = [(escape.printable(high), escape.printable(low)) for high, low in self.columns()]
        shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1))
        for index, (high, low) in enumerate(headers):
            text = Text(high if high == low or not low else f"{high}\n{low}")
            shown.add_column(text, justify="left" if index < self.labels else "right", overflow="fold")
        for row, marks in zip(cells, self.is_best(), strict=True):
            shown.add_row(*[Text(c, style="bold" if mark else "") for c, mark in zip(row, marks, strict=True)])
        widths = [
            max([len(c) for c in column] + [len(p) for p in header]) + 3
            for column, header in zip(zip(*cells, strict=True), headers, strict=True)
        ]
        console = Console(width=width or max(4 + sum(widths), 60), force_terminal=color, highlight=False)
        with console.capture() as capture:
            console.print(Text(escape.printable(self.title), style="bold"), soft_wrap=True)
            console.print(shown)
            for note in self.notes:
                console.print(Text(escape.printable(note), style="dim"), soft_wrap=True)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def flat(self) -> pd.DataFrame:
        """The frame with one line of plain column names (`fda_once`, `gain`), and a column per number."""
        columns: dict[str, Any] = {}
        for index, (high, low) in enumerate(self.columns()):
            values = self.frame.iloc[:, index]
            name = _plain(high, low)
            kind = self.formats.get((high, low))
            if kind == "interval":
                columns["low"] = [math.nan if missing(v) else v[0] for v in values]
                columns["high"] = [math.nan if missing(v) else v[1] for v in values]
            elif kind == "measure":
                columns[name] = [math.nan if missing(v) else v[0] for v in values]
                columns[f"{name}_stderr"] = [math.nan if missing(v) else v[1] for v in values]
            else:
                columns[name if name not in columns else f"{name}_{index}"] = values.to_numpy()
        return pd.DataFrame(columns)

    def render(self, form: str) -> str:
        """As text: terminal, markdown, latex or csv."""
        if form == "csv":
            frame = self.flat()
            for name in frame.columns[: self.labels]:
                frame[name] = [escape.csv_cell(str(v)) if not missing(v) else "" for v in frame[name]]
            return str(frame.to_csv(index=False, lineterminator="\n"))
        texts = {"terminal": self.terminal, "markdown": self.markdown, "latex": self.latex}
        if form not in texts:
            raise UserError(f"unknown format {form!r}{nearest(form, list(FORMATS))}: it can be {', '.join(FORMATS)}")
        return texts[form]()

    def write(self, path: str | os.PathLike[str]) -> None:
        """To a file, in the form that its ending names: .md, .tex, .csv, .parquet, .txt. Raises UserError."""
        forms = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".parquet": "parquet", ".txt": "terminal"}
        target = Path(path)
        form = forms.get(target.suffix)
        if form is None:
            raise UserError(f"{target}: a table's file ends in {', '.join(forms)}")
        if form == "parquet":
            with replacing(target) as new:
                self.flat().to_parquet(new, index=False)
        else:
            write_text(target, self.terminal(color=False) if form == "terminal" else self.render(form))

    def name(self) -> str:
        """The slug."""
        return self.slug or re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:40]

    def _text(self, value: Any, kind: str, digits: int, number: bool) -> str:
        if missing(value):
            return MISSING if number else ""
        if kind == "interval":
            return MISSING if missing(value[0]) else f"[{value[0]:+.{digits}f}, {value[1]:+.{digits}f}]"
        if kind == "measure":
            return f"{value[0]:.{digits}f}" + ("" if missing(value[1]) else f" ± {value[1]:.{digits}f}")
        if kind == "p":
            return "<0.001" if value < 0.001 else f"{value:.3f}"
        if kind == "three digits":
            return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        if kind == "signed":
            return f"{value:+.{digits}f}"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def missing(value: object) -> bool:
    """Whether a cell is empty."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def with_columns(records: list[list[Any]], names: list[Name]) -> pd.DataFrame:
    """A frame of these rows whose column names have two levels."""
    frame = pd.DataFrame(records, columns=pd.MultiIndex.from_tuples(names), dtype=object)
    return frame.infer_objects()


def _plain(high: str, low: str) -> str:
    name = high if high == low or not low else f"{high}_{low}"
    return re.sub(r"[\W_]+", "_", name.lower().replace("%", " percent ")).strip("_")
