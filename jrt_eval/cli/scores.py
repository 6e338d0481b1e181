"""`jrt-eval scores`."""

from __future__ import annotations

import click

from jrt_eval.cli import results_options as options


@click.command()
@options.folders
@options.models
@options.tasks
@click.option("--metric", "metrics", multiple=True, help="Only this metric (may be repeated); `all`: every metric.")
@options.filter_name
@options.form
@options.out
def scores(
    folders: tuple[str, ...],
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metrics: tuple[str, ...],
    filter_name: str | None,
    form: str,
    out: str | None,
) -> None:
    """Show every task's and group's scores with standard errors.

    FOLDERS are collected folders or lm-eval's output; samples are not needed.
    """
    from jrt_eval.analysis.tables import scores_table

    table = scores_table(options.load(folders, models, tasks, None), metrics=metrics, filter_name=filter_name)
    options.show(table, form, out)
