"""The demo: stock `lm_eval` with the mini checkpoints on a read-once and a read-twice task, then a table and a bar chart of both."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from jrt_eval.errors import UserError
from jrt_eval.minis import NAMES
from jrt_eval.processes import child_environment, python_module

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DOCUMENTS = 40  # of the 160 of jrt_mini: four models in under three minutes on two cores


def run_demo(folder: Path, data_dir: str | None, limit: int | None) -> None:
    """Evaluate all minis and show the results.

    folder: for lm-eval's output and the plot. data_dir: real documents, instead of the generated ones that are bundled.
    limit: documents of each task; None: `DOCUMENTS` of the generated ones, or all of `data_dir`.
    """
    tasks, metadata = "jrt_mini,jrt_mini_twice", {}
    if data_dir is not None:
        tasks, metadata = "jrt_prompt", {"data_dir": data_dir}
        click.echo(
            "The minis were trained on short generated documents. On real ones they show how it works, not much recall.\n"
        )
    elif limit is None:
        limit = DOCUMENTS
    runs = folder / "runs" / time.strftime("%Y%m%d-%H%M%S")
    for model in NAMES:
        run_lm_eval(model, tasks, runs, metadata, limit)
    show(runs)
    try:
        chart(table(runs)).savefig(folder / "once-twice.png", dpi=150)
        click.echo(f"plot: {folder / 'once-twice.png'}")
    except ImportError:
        click.echo("no plot: pip install 'jrt-eval[report]'")
    click.echo(f"All output is in {folder}. Next: jrt-eval compare {runs}")


def run_lm_eval(model: str, tasks: str, output: Path, metadata: dict[str, str], limit: int | None) -> None:
    """Run stock lm_eval as a process of its own, with its output on the terminal.

    In float32: the minis are stored in bfloat16, in which two answers can be almost equally likely, and then processors differ.
    """
    arguments = [
        "run",
        "--model",
        "jrt",
        "--model_args",
        f"pretrained={model},dtype=float32",
        "--tasks",
        tasks,
        "--batch_size",
        "8",
    ]
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
    """The metric `contains`, its standard error and the number of documents, by model and data set, read once and twice."""
    import pandas as pd

    from jrt_eval.analysis import load_results

    scores = load_results(runs).scores
    groups = scores["task"].isin(["jrt_once", "jrt_twice"])  # means over tasks
    scores = scores[(scores["metric"] == "contains") & scores["variant"].isin(["once", "twice"]) & ~groups]
    return (
        scores.assign(model=[Path(str(model)).name for model in scores["model"]])
        .astype({"dataset": str, "variant": str})
        .pivot_table(index=["model", "dataset"], columns="variant", values=["value", "stderr", "n"])
        # One document has no standard error, and pivot_table drops columns without values.
        .reindex(columns=pd.MultiIndex.from_product([["value", "stderr", "n"], ["once", "twice"]]))
    )


def show(runs: Path) -> None:
    """Print `contains` in percent, read once and read twice, a row per model and data set."""
    wide = table(runs)
    click.echo(f"\n{'model':<16}{'documents':<14}{'n':>5}{'once':>14}{'twice':>14}{'gain':>8}")
    for key, row in wide.iterrows():
        model, dataset = cast("tuple[str, str]", key)
        once, twice = 100 * row["value", "once"], 100 * row["value", "twice"]
        errors = 100 * row["stderr", "once"], 100 * row["stderr", "twice"]
        cells = [
            f"{value:6.1f}" + ("" if isnan(error) else f" ± {error:4.1f}")
            for value, error in zip((once, twice), errors, strict=True)
        ]
        click.echo(f"{model:<16}{dataset:<14}{row['n', 'once']:5.0f}{cells[0]:>14}{cells[1]:>14}{twice - once:+8.1f}")
    click.echo("(% of answers that contain the gold one ± standard error; `jrt-eval compare` has paired intervals)")


def chart(wide: pd.DataFrame) -> Figure:
    """Bars for read once and read twice with standard errors, for each model and data set of `table`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 1.6 * len(wide)), 3.6), layout="constrained")
    axes = figure.subplots()
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
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)  # above the axes, where it covers no bar
    return figure
