"""The commands `jrt-eval collect`, `compare` and `report`; what they do lives in the modules that they call."""

from __future__ import annotations

import click


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
    from jrt_eval.results.collect import collect as run

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
