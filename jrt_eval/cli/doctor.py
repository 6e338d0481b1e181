"""`jrt-eval doctor`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--model", metavar="MODEL", help="Also load this model (folder or hub id) and show how it is evaluated.")
def doctor(model: str | None) -> None:
    """Show what works on this machine, what does not, and how to fix it.

    \b
    Covers lm-eval and the registration of our models and tasks, the compiled kernels, PyTorch
    and its devices, documents on this machine, and optional packages.

    The exit status is 1 if something that every evaluation needs is broken.
    """
    from jrt_eval.doctor import examine, examine_model

    findings = examine() + ([] if model is None else examine_model(model))
    width = max(len(f.topic) for f in findings)
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.works else click.style("--", fg="yellow")
        click.echo(f"{mark}  {finding.topic:<{width}}  {finding.text}")
        if finding.fix and not finding.works:
            click.echo(f"    {'':<{width}}  -> {finding.fix}")
    if any(f.broken for f in findings):
        sys.exit(1)
