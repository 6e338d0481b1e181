"""`jrt-eval audit`: which protocol did a folder of results use?"""

from __future__ import annotations

import click


@click.command()
@click.argument("runs")
def audit(runs: str) -> None:
    """Name the protocol of every task in RUNS, lm-eval's output folder, and warn about what makes numbers incomparable."""
    from jrt_eval.analysis.audit import audit as audit_folder
    from jrt_eval.analysis.escape import printable

    file = None
    for entry in audit_folder(runs):
        if entry.file != file:
            file = entry.file
            click.echo(printable(file))
        click.echo(printable(f"  {entry.task}: {entry.protocol}"))
        for warning in entry.warnings:
            click.echo(printable(f"    warning: {warning}"))
