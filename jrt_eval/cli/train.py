"""`jrt-eval train CONFIG.yaml`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, for example optimizer.lr=5e-4."
)
@click.option("--data-only", is_flag=True, help="Write the token files and stop.")
def train(config: Path, overrides: tuple[str, ...], data_only: bool) -> None:
    """Train a model from scratch as the YAML file CONFIG says.

    The same command resumes an interrupted run. SIGTERM and Ctrl-C end a run with a checkpoint.

    \b
    jrt-eval train configs/mini/jrt.yaml
    accelerate launch --num_processes 8 -m jrt_eval train configs/paper/jrt-360m.yaml
    """
    from jrt_eval.training.stages import load_stages, train_stages

    stages = load_stages(config, overrides)
    if data_only:
        from jrt_eval.data.cache import open_rows

        for stage in stages:
            for data in filter(None, (stage.data, stage.validation)):
                rows = open_rows(data, stage.tokenizer, Path(stage.cache))
                click.echo(f"{len(rows):,} rows, {len(rows.tokens):,} tokens in {stage.cache}")
        return
    click.echo(f"last checkpoint: {train_stages(stages)}")
