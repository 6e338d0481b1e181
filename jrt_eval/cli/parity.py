"""`jrt-eval parity`."""

from __future__ import annotations

import click

from jrt_eval.cli import results_options as options


@click.command()
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@options.models
@options.tasks
@options.metric
@options.filter_name
@options.form
@options.out
def parity(
    first: str,
    second: str,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: str | None,
    filter_name: str | None,
    form: str,
    out: str | None,
) -> None:
    """Compare two runs of one model document by document, for example on two backends.

    FIRST and SECOND are collected folders or lm-eval's output.
    """
    from jrt_eval.analysis.parity import parity_table

    runs = [options.load((folder,), models, tasks, None) for folder in (first, second)]
    options.show(parity_table(*runs, metric=metric, filter_name=filter_name), form, out)
