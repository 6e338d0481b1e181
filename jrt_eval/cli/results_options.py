"""Options and arguments that the commands on results share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jrt_eval.analysis.load import Results
    from jrt_eval.analysis.table import Table

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

folders = click.argument("folders", nargs=-1, required=True, type=click.Path())
models = click.option("--model", "models", multiple=True, help="Only this model (may be repeated).")
tasks = click.option(
    "--task", "tasks", multiple=True, help="Only this task, or data set: fda means jrt_fda and jrt_fda_twice."
)
metric = click.option("--metric", help="The metric (default: contains, else exact_match, acc or f1).")
filter_name = click.option(
    "--filter", "filter_name", help="The filter of tasks with several (default: none, else the first in the alphabet)."
)
published = click.option("--published", is_flag=True, help="Add published numbers of the same models and protocols.")
tokenizer = click.option("--tokenizer", help="Folder or hub id: count prompts and distances in tokens.")
form = click.option("--format", "form", type=click.Choice(["terminal", "markdown", "latex", "csv"]), default="terminal")
out = click.option(
    "-o",
    "--out",
    type=click.Path(),
    help="Write to this file: .md, .tex, .csv, .parquet or .txt; compare: .png, .svg or .pdf too.",
)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which `--help` lists them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def load(folders: tuple[str, ...], models: tuple[str, ...], tasks: tuple[str, ...], tokenizer: str | None) -> Results:
    """The results of collected folders or of lm-eval's output, as the options narrow them."""
    from jrt_eval.analysis.load import load_results

    results = load_results(*folders)
    if models:
        results = results.of_models(models)
    if tasks:
        results = results.of_tasks(tasks)
    if tokenizer:
        from jrt_eval.analysis.tokens import count_tokens

        results = count_tokens(results, tokenizer)
    return results


def show(table: Table, form: str, out: str | None) -> None:
    """Print a table, or write it to a file."""
    if out:
        table.write(out)
        click.echo(f"wrote {out}")
    else:
        click.echo(table.render(form), nl=False)
