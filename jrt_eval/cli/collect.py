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
@click.option("--to", type=click.Choice(["parquet", "every_eval_ever"]), default="parquet", show_default=True,
              help="every_eval_ever: scores as JSON files of that project's schema, for sharing.")  # fmt: skip
@click.option("--organization", help="With --to every_eval_ever: who ran the evaluation.")
@click.option("--relationship", type=click.Choice(["first_party", "third_party", "collaborative", "other"]),
              default="other", show_default=True, help="Theirs to the model.")  # fmt: skip
def collect(
    folders: tuple[str, ...],
    out: str | None,
    keep: str,
    strict: bool,
    workers: int | None,
    to: str,
    organization: str | None,
    relationship: str,
) -> None:
    """Collect lm-eval output under FOLDERS into parquet and CSV files.

    Reads `results_*.json` and `samples_*.jsonl` and writes scores.parquet, scores.csv, predictions/ (a parquet data
    set) and skipped.csv. A second collect reads new files only.
    """
    if to == "every_eval_ever":
        _export(folders, out, keep, organization, relationship)
        return
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


def _export(folders: tuple[str, ...], out: str | None, keep: str, organization: str | None, relationship: str) -> None:
    from jrt_eval.analysis.escape import printable
    from jrt_eval.analysis.every_eval_ever import export
    from jrt_eval.analysis.notes import counted
    from jrt_eval.analysis.tree import grouped
    from jrt_eval.errors import UserError

    if organization is None or out is None:
        raise UserError("--to every_eval_ever needs --organization, who ran the evaluation, and --out")
    written, survey = export(folders, out, organization=organization, relationship=relationship, keep=keep)
    for line in grouped(survey.skipped)[:20]:
        click.echo(printable(line), err=True)
    click.echo(f"{out}: {counted(len(written), 'run')} as JSON files of Every Eval Ever's schema")
