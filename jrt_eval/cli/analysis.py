"""The commands `jrt-eval collect`, `compare` and `report`; what they do lives in the modules that they call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from jrt_eval.analysis.load import Results
    from jrt_eval.analysis.tables import Table


@click.command()
@click.argument("folder", type=click.Path())
@click.option("-o", "--out", type=click.Path(), help="Folder to write to (default: FOLDER/collected).")
@click.option(
    "--keep",
    type=click.Choice(["newest", "all"]),
    default="newest",
    show_default=True,
    help="Which of several runs of the same thing.",
)
@click.option("--strict", is_flag=True, help="A file that would be skipped is an error.")
@click.option("--workers", type=click.IntRange(1), help="Processes that parse samples (default: the CPUs, at most 8).")
def collect(folder: str, out: str | None, keep: str, strict: bool, workers: int | None) -> None:
    """Collect lm-eval output under FOLDER into parquet and CSV files.

    Reads `results_*.json` and `samples_*.jsonl` of lm-eval 0.4.9 to 0.4.13 and writes scores.parquet, scores.csv,
    predictions/ (a parquet data set), skipped.csv. A second collect reads only what is new.
    """
    from jrt_eval.analysis.collecting import collect as run

    done = run(folder, out, keep=keep, strict=strict, workers=workers)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    shown = list(done.skipped.items())[:20]
    for path, reason in shown:
        click.echo(f"skipped {path}: {reason}", err=True)
    if len(done.skipped) > len(shown):
        click.echo(f"skipped {len(done.skipped) - len(shown)} more: see {done.out / 'skipped.csv'}", err=True)
    replaced = f", {done.superseded} older results of the same thing left out" if done.superseded else ""
    click.echo(
        f"{done.out}: {done.runs} runs, {done.scores} scores, {done.predictions} predictions "
        f"({done.read} files read, {done.reused} known{replaced})"
    )


TABLES = ("gain", "prompt", "length", "failures", "by-length", "by-place", "by-distance")


@click.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--table",
    type=click.Choice(TABLES),
    default="gain",
    show_default=True,
    help="gain: paired, per task and pooled. prompt, length: the paper's Tables 1 and 2. failures: kinds of wrong "
    "answers. by-length, by-place, by-distance: the gain against the document's length, the answer's place in it, "
    "and how far before the question it stands.",
)
@click.option("--versus", nargs=2, metavar="A B", help="Compare model B with model A, not twice with once.")
@click.option("--model", "models", multiple=True, help="Only this model (several times: these).")
@click.option("--task", "tasks", multiple=True, help="Only this task, or data set: fda is jrt_fda and jrt_fda_twice.")
@click.option("--metric", help="The metric (default: contains, else exact_match, acc or f1).")
@click.option("--published", is_flag=True, help="With --table prompt or length: the paper's numbers beside yours.")
@click.option("--tokenizer", help="Folder or hub id: count distances in tokens.")
@click.option("--format", "form", type=click.Choice(["terminal", "markdown", "latex", "csv"]), default="terminal")
@click.option("-o", "--out", type=click.Path(), help="Write to this file: .md, .tex, .csv, .parquet or .txt.")
def compare(
    folder: str,
    table: str,
    versus: tuple[str, str] | None,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: str | None,
    published: bool,
    tokenizer: str | None,
    form: str,
    out: str | None,
) -> None:
    """Compare runs on the same documents, with intervals and tests for paired data.

    FOLDER is what collect wrote, or lm-eval's output itself.
    """
    from jrt_eval.analysis.tables import length_table, prompt_table
    from jrt_eval.errors import UserError

    if published and table not in {"prompt", "length"}:
        raise UserError("--published goes with --table prompt or --table length")
    if versus and table in {"prompt", "length", "failures"}:
        raise UserError(f"--versus compares two models' documents: it does not go with --table {table}")
    results = _load(folder, models, tasks, tokenizer)
    if table == "prompt":
        shown = prompt_table(results, metric=metric, published=published)
    elif table == "length":
        shown = length_table(results, metric=metric, published=published)
    else:
        shown = _paired(results, table, versus, metric)
    if out:
        shown.write(out)
        click.echo(f"wrote {out}")
    else:
        click.echo(shown.render(form), nl=False)


def _load(folder: str, models: tuple[str, ...], tasks: tuple[str, ...], tokenizer: str | None) -> Results:
    from jrt_eval.analysis.load import load_results

    results = load_results(folder)
    if models:
        results = results.of_models(models)
    if tasks:
        results = results.of_tasks(tasks)
    if tokenizer:
        from jrt_eval.analysis.tokens import count_tokens

        results = count_tokens(results, tokenizer)
    return results


def _paired(results: Results, table: str, versus: tuple[str, str] | None, metric: str | None) -> Table:
    from jrt_eval.analysis import statistics, tables
    from jrt_eval.analysis.failures import failure_table
    from jrt_eval.analysis.report import by_columns
    from jrt_eval.errors import UserError

    chosen = statistics.pick_metric(results, metric)
    if table == "failures":
        known = results.predictions[results.predictions[f"metric_{chosen}"].notna()]
        return tables.failures_as_table(failure_table(known, chosen), chosen)
    if versus:
        comparison = statistics.compare_models(results, *versus, metric=chosen)
    else:
        comparison = statistics.compare_variants(results, metric=chosen)
    if table == "gain":
        return tables.gain_table(comparison)
    wanted = {
        "by-length": ("doc_tokens", "prompt_chars"),
        "by-place": ("answer_depth",),
        "by-distance": ("answer_distance_tokens", "answer_distance"),
    }[table]
    for column, what in by_columns(comparison):
        if column in wanted:
            bins = statistics.gain_by_model(comparison.pairs, column)
            return tables.gain_by_table(bins, what, comparison.arms)
    raise UserError(f"the place of the answers is not known in these documents: {table} has nothing to show")


@click.command()
@click.argument("folder", type=click.Path())
@click.option("-o", "--out", type=click.Path(), default="report.html", show_default=True, help="The HTML file.")
@click.option("--title", default="Recall, read once and twice", help="The page's title.")
@click.option("--model", "models", multiple=True, help="Only this model (several times: these).")
@click.option("--task", "tasks", multiple=True, help="Only this task, or data set: fda is jrt_fda and jrt_fda_twice.")
@click.option("--metric", help="The metric (default: contains, else exact_match, acc or f1).")
@click.option("--published", is_flag=True, help="The paper's numbers beside yours.")
@click.option("--tokenizer", help="Folder or hub id: count distances in tokens.")
@click.option("--plots", type=click.Path(), help="Also write every plot into this folder.")
@click.option("--plot-format", type=click.Choice(["png", "svg", "pdf"]), multiple=True, default=("png", "svg"))
@click.option(
    "--style", type=click.Choice(["screen", "paper"]), default="screen", show_default=True, help="Of --plots."
)
@click.option(
    "--tables", type=click.Path(), help="Also write every table into this folder (.md, .tex, .csv, .parquet)."
)
def report(
    folder: str,
    out: str,
    title: str,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: str | None,
    published: bool,
    tokenizer: str | None,
    plots: str | None,
    plot_format: tuple[str, ...],
    style: str,
    tables: str | None,
) -> None:
    """Write one HTML page with the tables, the plots and a browser of documents.

    FOLDER is what collect wrote, or lm-eval's output itself. The page needs no network.
    """
    from pathlib import Path

    from jrt_eval.analysis.plots import save
    from jrt_eval.analysis.report import make_parts, write_report

    results = _load(folder, models, tasks, tokenizer)
    write_report(results, out, metric=metric, published=published, title=title)
    written = [out]
    if plots or tables:
        parts = make_parts(results, metric=metric, published=published, style=style)
        for name, figure in parts.figures.items() if plots else ():
            for ending in plot_format:
                save(figure, Path(str(plots)) / f"{name}.{ending}")
        for name, table in parts.tables.items() if tables else ():
            for ending in (".md", ".tex", ".csv", ".parquet"):
                table.write(Path(str(tables)) / f"{name}{ending}")
        written += [f for f in (plots, tables) if f]
    click.echo(f"wrote {', '.join(written)}")
