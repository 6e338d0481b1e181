"""`jrt-eval compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jrt_eval.cli import results_options as options

if TYPE_CHECKING:
    from jrt_eval.analysis.comparison import Comparison
    from jrt_eval.analysis.load import Results
    from jrt_eval.analysis.table import Table

TABLES = ("gain", "cost", "prompt", "length", "failures", "grid", "by-length", "by-place", "by-distance")
ENDINGS = (".png", ".svg", ".pdf")  # of --out, for a plot
_COLUMNS = {
    "by-length": ("doc_tokens", "prompt_chars"),
    "by-place": ("answer_depth",),
    "by-distance": ("answer_distance_tokens", "answer_distance"),
}


@click.command()
@options.folders
@click.option(
    "--table",
    type=click.Choice(TABLES),
    default="gain",
    show_default=True,
    help="gain: paired, per task and pooled. cost: what a gain costs in prompt tokens and seconds. prompt, length: the "
    "paper's Tables 1 and 2. failures: kinds of wrong answers. grid: by the answer's depth and the context length. by-length, by-place, by-distance: the gain against the document's length, the answer's place in it, "
    "and how far before the question it is.",
)
@click.option("--versus", nargs=2, metavar="A B", help="Compare model B with model A, not twice with once.")
@click.option("--baseline", metavar="MODEL", help="Compare every other model with this one.")
@click.option("--against", default="once", show_default=True, help="The variant that `twice` is compared with.")
@click.option("--cluster", metavar="COLUMN", help="Rows with one value of this column are about one document.")
@click.option("--pool", type=click.Choice(["tasks", "documents"]), default="tasks", show_default=True,
              help="What counts equally in the pooled row.")  # fmt: skip
@options.models
@options.tasks
@options.metric
@options.filter_name
@options.published
@options.tokenizer
@options.form
@options.out
def compare(
    folders: tuple[str, ...],
    table: str,
    versus: tuple[str, str] | None,
    baseline: str | None,
    against: str,
    cluster: str | None,
    pool: str,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: str | None,
    filter_name: str | None,
    published: bool,
    tokenizer: str | None,
    form: str,
    out: str | None,
) -> None:
    """Compare runs on the same documents, with intervals and tests for paired data.

    FOLDERS are collected folders or lm-eval's output.
    """
    from jrt_eval.analysis import tables
    from jrt_eval.errors import UserError

    if published and table not in {"prompt", "length"}:
        raise UserError("--published goes with --table prompt or --table length")
    if (versus or baseline) and table in {"prompt", "length", "failures"}:
        raise UserError(f"--versus compares two models' documents: it does not go with --table {table}")
    if versus and baseline:
        raise UserError("--versus and --baseline do not go together")
    results = options.load(folders, models, tasks, tokenizer)
    if table in {"prompt", "length"}:
        make = tables.prompt_table if table == "prompt" else tables.length_table
        shown = make(results, metric=metric, published=published, filter_name=filter_name)
    elif table == "failures":
        from jrt_eval.analysis.failures import failure_table
        from jrt_eval.analysis.select import paired_metric

        metric = paired_metric(results, metric)
        shown = tables.failures_as_table(failure_table(results, metric, filter_name=filter_name), metric)
    else:
        settings: dict[str, object] = {
            "metric": metric,
            "filter_name": filter_name,
            "cluster": cluster,
            "by_size": pool == "documents",
        }
        comparison = _comparison(results, versus, baseline, against, settings)
        if out is not None and out.endswith(ENDINGS):
            save_plot(comparison, table, out)
            return
        shown = _table(comparison, table)
    options.show(shown, form, out)


def _comparison(
    results: Results, versus: tuple[str, str] | None, baseline: str | None, against: str, settings: dict[str, object]
) -> Comparison:
    from jrt_eval.analysis.comparison import compare_models, compare_variants
    from jrt_eval.errors import UserError

    if versus:
        return compare_models(results, *versus, **settings)  # type: ignore[arg-type]
    if baseline:
        others = [str(m) for m in results.scores["model"].unique() if m != baseline]
        if not others:
            raise UserError(f"{baseline} is the only model here: --baseline needs results of another one")
        return compare_models(results, baseline, sorted(others), **settings)  # type: ignore[arg-type]
    return compare_variants(results, against=against, **settings)  # type: ignore[arg-type]


def _table(comparison: Comparison, table: str) -> Table:
    from jrt_eval.analysis import grid, tables
    from jrt_eval.analysis.comparison import gain_by

    if table == "gain":
        return tables.gain_table(comparison)
    if table == "cost":
        return tables.cost_table(comparison)
    if table == "grid":
        return grid.grid_table(grid.depth_grids(comparison), comparison)
    column, what = _column(comparison, table)
    return tables.gain_by_table(gain_by(comparison, column), what, comparison)


def save_plot(comparison: Comparison, table: str, out: str) -> None:
    """Write the plot of a table to a .png, .svg or .pdf file."""
    from pathlib import Path

    from jrt_eval.analysis import grid, plots
    from jrt_eval.analysis.comparison import gain_by
    from jrt_eval.errors import UserError

    if table == "gain":
        figure = plots.gain_plot(comparison)
    elif table == "grid":
        _table(comparison, table)  # says what is missing
        figure = plots.grid_plot(grid.depth_grids(comparison), comparison)
    elif table == "cost":
        _table(comparison, table)
        found = [plots.gain_cost_plot(comparison, cost) for cost in plots.EXTRA_COSTS]
        drawn = next((figure for figure in found if figure is not None), None)
        if drawn is None:
            raise UserError("every model and task costs the same here: there is nothing to plot")
        figure = drawn
    else:
        column, what = _column(comparison, table)
        figure = plots.gain_by_plot(gain_by(comparison, column), what, comparison)
    plots.save(figure, Path(out))
    click.echo(f"wrote {out}")


def _column(comparison: Comparison, table: str) -> tuple[str, str]:
    """The column of pairs that a by-... table is about, and what it is called. Raises UserError."""
    from jrt_eval.analysis.report import by_columns
    from jrt_eval.errors import UserError

    for column, what in by_columns(comparison):
        if column in _COLUMNS[table]:
            return column, what
    raise UserError(f"the place of the answers is not known in these documents: {table} has nothing to show")
