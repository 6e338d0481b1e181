"""`jrt-eval collect`."""

from __future__ import annotations

import click

from jrt_eval.cli import results_options as options


@click.command()
@options.folders
@click.option("-o", "--out", type=click.Path(), help="Folder to write to (default: FOLDER/collected).")
@click.option(
    "--keep",
    type=click.Choice(["newest", "all"]),
    default="newest",
    show_default=True,
    help="Which of several runs that are equal in model, task, settings and seeds.",
)
@click.option("--strict", is_flag=True, help="A file that would be skipped is an error.")
@click.option("--workers", type=click.IntRange(1), help="Processes that parse samples (default: the CPUs, at most 8).")
def collect(folders: tuple[str, ...], out: str | None, keep: str, strict: bool, workers: int | None) -> None:
    """Collect lm-eval output under FOLDERS into parquet and CSV files.

    Reads `results_*.json` and `samples_*.jsonl` and writes scores.parquet, scores.csv, predictions/ (a parquet data
    set) and skipped.csv. A second collect reads new files only.
    """
    from jrt_eval.analysis.collecting import collect as run
    from jrt_eval.analysis.escape import printable
    from jrt_eval.analysis.notes import counted
    from jrt_eval.analysis.tree import grouped

    done = run(folders, out, keep=keep, strict=strict, workers=workers)
    for note in done.notes:
        click.echo(f"note: {printable(note)}", err=True)
    lines = grouped(done.skipped)
    for line in lines[:20]:
        click.echo(printable(line), err=True)
    if len(lines) > 20:
        click.echo(f"skipped for {len(lines) - 20} more reasons: see {done.out / 'skipped.csv'}", err=True)
    replaced = f", {counted(done.superseded, 'older result')} of the same thing left out" if done.superseded else ""
    click.echo(
        f"{done.out}: {counted(done.runs, 'run')}, {counted(done.scores, 'score')}, "
        f"{counted(done.predictions, 'prediction')} "
        f"({counted(done.read, 'file')} read, {done.reused:,} known{replaced})"
    )
