"""`jrt-eval demo`."""

from __future__ import annotations

from pathlib import Path

import click

from jrt_eval.errors import UserError


@click.command()
@click.option(
    "-o", "--output", default="runs/demo", show_default=True, help="Folder for lm-eval's output and the plot."
)
@click.option("--data-dir", help="Real documents instead of generated ones: <data-dir>/<dataset>/validation.jsonl.")
@click.option("--limit", type=click.IntRange(1), help="Documents of each task.  [default: 40; with --data-dir all]")
def demo(output: str, data_dir: str | None, limit: int | None) -> None:
    """Evaluate four small bundled models on documents read once and read twice.

    Runs stock lm_eval on this machine's CPU and shows both scores in a table and a bar chart, in two to three minutes.
    Nothing is downloaded.

    \b
    jrt-eval demo                          generated documents that are bundled with jrt-eval
    jrt-eval demo --data-dir documents     real documents, in documents/<dataset>/validation.jsonl
    jrt-eval compare runs/demo/runs/...    afterwards: paired intervals of the gains
    """
    from jrt_eval.demo import run_demo

    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir}: no such folder")
    run_demo(Path(output), data_dir, limit)
