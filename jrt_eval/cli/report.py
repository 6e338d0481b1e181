"""`jrt-eval report`."""

from __future__ import annotations

import click

from jrt_eval.cli import results_options as options


@click.command()
@options.folders
@click.option("-o", "--out", type=click.Path(), default="report.html", show_default=True, help="The HTML file.")
@click.option("--title", help="The page's title.")
@options.models
@options.tasks
@options.metric
@options.filter_name
@options.published
@options.tokenizer
@click.option("--plots", type=click.Path(), help="Also write every plot into this folder.")
@click.option("--plot-format", type=click.Choice(["png", "svg", "pdf"]), multiple=True, default=("png", "svg"))
@click.option(
    "--style", type=click.Choice(["screen", "paper"]), default="screen", show_default=True, help="Of --plots."
)
@click.option(
    "--tables", type=click.Path(), help="Also write every table into this folder (.md, .tex, .csv, .parquet)."
)
def report(
    folders: tuple[str, ...],
    out: str,
    title: str | None,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: str | None,
    filter_name: str | None,
    published: bool,
    tokenizer: str | None,
    plots: str | None,
    plot_format: tuple[str, ...],
    style: str,
    tables: str | None,
) -> None:
    """Write one HTML page: the conclusion, tables, plots and a browser of documents.

    FOLDERS are collected folders or lm-eval's output. The page needs no network.
    """
    from pathlib import Path

    from jrt_eval.analysis.plots import save
    from jrt_eval.analysis.report import make_parts, write_report

    results = options.load(folders, models, tasks, tokenizer)
    write_report(results, out, metric=metric, filter_name=filter_name, published=published, title=title)
    written = [out]
    if plots or tables:
        parts = make_parts(results, metric=metric, filter_name=filter_name, published=published, style=style)
        for name, figure in parts.figures.items() if plots else ():
            for ending in plot_format:
                save(figure, Path(str(plots)) / f"{name}.{ending}")
        for name, table in parts.tables.items() if tables else ():
            for ending in (".md", ".tex", ".csv", ".parquet"):
                table.write(Path(str(tables)) / f"{name}{ending}")
        written += [f for f in (plots, tables) if f]
    click.echo(f"wrote {', '.join(written)}")
