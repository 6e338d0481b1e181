"""`jrt-eval audit`: which protocol did a folder of results use?"""

from __future__ import annotations

import click


@click.command()
@click.argument("runs")
def audit(runs: str) -> None:
    """Name the protocol of every task in RUNS, lm-eval's output folder, and warn about what makes numbers incomparable."""
    from jrt_eval.analysis.audit import audit as audit_folder

    file = None
    for entry in audit_folder(runs):
        if entry.file != file:
            file = entry.file
            click.echo(_printable(file))
        click.echo(_printable(f"  {entry.task}: {entry.protocol}"))
        for warning in entry.warnings:
            click.echo(_printable(f"    warning: {warning}"))


def _printable(line: str) -> str:
    """`line` without characters that a terminal would interpret: names come from files."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
