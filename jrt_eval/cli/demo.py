"""`jrt-eval demo`: the main job from end to end, on this machine, with nothing downloaded.

Runs stock `lm_eval` with small local models on a read-once task and its read-twice variant, and shows both side by side.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from jrt_eval.errors import UserError
from jrt_eval.minis import NAMES
from jrt_eval.processes import child_environment, python_module

if TYPE_CHECKING:
    import pandas as pd

DOCUMENTS = 40  # of the 160 of jrt_mini: four models in under three minutes on two cores


def run_lm_eval(model: str, tasks: str, output: Path, metadata: dict[str, str], limit: int | None) -> None:
    """One stock lm_eval process, its output shown as it comes."""
    arguments = ["run", "--model", "jrt", "--model_args", f"pretrained={model}", "--tasks", tasks, "--batch_size", "8"]
    arguments += ["--device", "cpu", "--output_path", str(output), "--log_samples"]
    if metadata:
        arguments += ["--metadata", json.dumps(metadata)]
    if limit:
        arguments += ["--limit", str(limit)]
    click.secho("$ " + shlex.join(["lm_eval", *arguments]), bold=True)
    # Everything is on this machine. Without this variable, look-ups of names on the hub wait for a time-out where there is no network.
    environment = child_environment({"HF_HUB_OFFLINE": "1"})
    if subprocess.run(python_module("lm_eval", *arguments), env=environment).returncode != 0:
        raise UserError(f"lm_eval failed on {model}; its last lines are above")


def table(runs: Path) -> pd.DataFrame:
    """`contains` by (model, data set): value, stderr and n, once and twice."""
    from jrt_eval.analysis import load_results

    scores = load_results(runs).scores
    groups = scores["task"].isin(["jrt_once", "jrt_twice"])  # their means, not tasks of their own
    scores = scores[(scores["metric"] == "contains") & scores["variant"].isin(["once", "twice"]) & ~groups]
    return (
        scores.assign(model=[Path(str(model)).name for model in scores["model"]])
        .astype({"dataset": str, "variant": str})
        .pivot_table(index=["model", "dataset"], columns="variant", values=["value", "stderr", "n"])
    )


def show(runs: Path) -> None:
    """Print `contains` in percent, once against twice, a row per model and data set."""
    wide = table(runs)
    click.echo(f"\n{'model':<16}{'documents':<14}{'n':>5}{'once':>14}{'twice':>14}{'gain':>8}")
    for key, row in wide.iterrows():
        model, dataset = cast("tuple[str, str]", key)
        once, twice = 100 * row["value", "once"], 100 * row["value", "twice"]
        errors = 100 * row["stderr", "once"], 100 * row["stderr", "twice"]
        cells = f"{once:6.1f} ± {errors[0]:4.1f}", f"{twice:6.1f} ± {errors[1]:4.1f}"
        click.echo(f"{model:<16}{dataset:<14}{row['n', 'once']:5.0f}{cells[0]:>14}{cells[1]:>14}{twice - once:+8.1f}")
    click.echo("(% of answers that contain the gold one ± standard error; `jrt-eval compare` has paired intervals)")


def plot(runs: Path, path: Path) -> None:
    """Once against twice, a group of bars per model and data set, with standard errors."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    wide = table(runs)
    figure, axes = plt.subplots(figsize=(max(4.0, 1.6 * len(wide)), 3.4), layout="constrained")
    places = range(len(wide))
    for offset, variant, colour in ((-0.2, "once", "#9fb8d9"), (0.2, "twice", "#3b6ea8")):
        axes.bar(
            [place + offset for place in places],
            100 * wide["value", variant],
            0.38,
            yerr=100 * wide["stderr", variant],
            label=f"read {variant}",
            color=colour,
            capsize=3,
        )
    several = len({dataset for _, dataset in wide.index}) > 1
    axes.set_xticks(list(places), [f"{model}\n{dataset}" if several else str(model) for model, dataset in wide.index])
    axes.set(ylabel="% of answers that contain the gold one", ylim=(0, 105))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command()
@click.option("-o", "--output", default="runs/demo", show_default=True, help="Folder for lm-eval output and the plot.")
@click.option("--data-dir", help="Real documents instead: <data-dir>/<dataset>/validation.jsonl (docs/tasks.md).")
@click.option(
    "--limit", type=click.IntRange(1), help=f"Documents of each task.  [default: {DOCUMENTS}, with --data-dir all]"
)
def demo(output: str, data_dir: str | None, limit: int | None) -> None:
    """Run lm_eval on read-once and read-twice tasks with the mini checkpoints, and show both side by side.

    Without --data-dir it asks about generated documents that ship with jrt-eval. Nothing is downloaded.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir}: no such folder")
    folder = Path(output)
    tasks = "jrt_mini,jrt_mini_twice" if data_dir is None else "jrt_prompt"
    metadata = {} if data_dir is None else {"data_dir": data_dir}
    if data_dir is not None:
        click.echo(
            "The minis have learnt short generated documents: on real ones they show the way, not much recall.\n"
        )
    elif limit is None:
        limit = DOCUMENTS
    runs = folder / "runs" / time.strftime("%Y%m%d-%H%M%S")
    for model in NAMES:
        run_lm_eval(model, tasks, runs, metadata, limit)
    show(runs)
    try:
        plot(runs, folder / "once-twice.png")
        click.echo(f"plot: {folder / 'once-twice.png'}")
    except ImportError:
        click.echo("no plot: pip install 'jrt-eval[report]'")
    click.echo(f"Everything that was written is under {folder}. Next: jrt-eval compare {runs}")
