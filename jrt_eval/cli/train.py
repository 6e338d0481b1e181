"""`jrt-eval train CONFIG.yaml`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. optimizer.lr=5e-4.")
@click.option("--data-only", is_flag=True, help="Write the token files and stop.")
def train(config: Path, overrides: tuple[str, ...], data_only: bool) -> None:
    """Train a model from scratch as CONFIG (YAML) says; run again, it resumes where it stopped.

    \b
    jrt-eval train configs/mini/jrt.yaml
    accelerate launch --num_processes 8 -m jrt_eval train configs/paper/jrt-360m.yaml
    """
    from jrt_eval.training.config import load_config

    loaded = load_config(config, overrides)
    if data_only:
        from jrt_eval.data.cache import open_rows

        for data in filter(None, (loaded.data, loaded.validation)):
            rows = open_rows(data, loaded.tokenizer, Path(loaded.cache))
            click.echo(f"{len(rows):,} rows, {len(rows.tokens):,} tokens in {loaded.cache}")
        return
    from jrt_eval.training.trainer import train as run

    click.echo(f"last checkpoint: {run(loaded)}")
