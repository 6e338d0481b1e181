"""Train a mini from scratch with several seeds at once, and print losses and accuracy.

    python benchmarks/train_minis.py based --seeds 0 1 2 --time-limit 420

Each seed is a run of `jrt-eval train configs/mini/NAME.yaml` in a process of its own, all on the same device. At the time limit the runs
get SIGTERM and write a checkpoint; the same command resumes them. Accuracy is teacher-forced, on evaluation documents of seed 2 with 28
facts, read once and read twice; the last row is the mini that ships with the package, on the same documents.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from jrt_eval import minis
from jrt_eval.data.cache import open_rows
from jrt_eval.data.config import Data, Synthetic
from jrt_eval.errors import UserError
from jrt_eval.processes import child_environment, python_module
from jrt_eval.training import checkpoint
from jrt_eval.training.config import Config
from jrt_eval.training.objective import Trainable, build_model
from jrt_eval.training.stages import load_stages
from jrt_eval.training.trainer import layout_of
from jrt_eval.training.validation import validate

ROOT = Path(__file__).parents[1]
BATCH = 48


@dataclass
class Run:
    """One seed: its settings, its process, its log, and how long it has been."""

    seed: int
    overrides: list[str]
    stages: list[Config]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    seconds: float = 0.0

    def reached(self) -> tuple[int, Path] | None:
        """The last stage with a checkpoint, counted from 0, and that checkpoint."""
        for index, stage in reversed(list(enumerate(self.stages))):
            if found := checkpoint.existing(Path(stage.output) / "checkpoints"):
                return index, found[-1]
        return None


def prepare(given: argparse.Namespace) -> list[Run]:
    config = ROOT / "configs" / "mini" / f"{given.name}.yaml"
    runs = []
    for seed in given.seeds:
        output = given.output / given.name / f"seed-{seed}"
        output.mkdir(parents=True, exist_ok=True)
        overrides = [
            f"seed={seed}",
            f"output={output}",
            f"backend={given.backend}",
            "tensorboard=false",
            *given.overrides,
        ]
        runs.append(Run(seed, overrides, load_stages(config, overrides), output / "log.txt"))
    return runs


def train(runs: list[Run], name: str, time_limit: float) -> None:
    """Run all seeds at once until they end or the time is up."""
    began = time.perf_counter()
    for stage in runs[0].stages:  # all seeds share the tokens
        for data in filter(None, (stage.data, stage.validation)):
            open_rows(data, stage.tokenizer, Path(stage.cache))
    print(f"tokens written or found after {time.perf_counter() - began:.0f} s", flush=True)
    config = str(ROOT / "configs" / "mini" / f"{name}.yaml")
    for run in runs:
        options = [part for override in run.overrides for part in ("--set", override)]
        with run.log.open("ab") as log:
            command = python_module("jrt_eval", "train", config, *options)
            run.process = subprocess.Popen(command, stdout=log, stderr=log, env=child_environment())
    while any(not run.seconds for run in runs):
        time.sleep(0.2)
        elapsed = time.perf_counter() - began
        for run in runs:
            assert run.process is not None
            if run.process.poll() is not None and not run.seconds:
                run.seconds = elapsed
            elif elapsed > time_limit and not run.seconds:
                run.process.send_signal(signal.SIGTERM)
                run.process.wait()
                run.seconds = time.perf_counter() - began
    for run in runs:
        assert run.process is not None
        if run.process.returncode not in (0, 128 + signal.SIGTERM):
            tail = run.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"seed {run.seed} failed with exit code {run.process.returncode}: {''.join(tail)} ({run.log})"
            )


def accuracy(config: Config, folder: Path, documents: int, device: torch.device) -> list[float]:
    """The share of answers predicted by the checkpoint in `folder`, read once and read twice."""
    model = build_model(config.model, config.backend, 0)
    checkpoint.load_weights(folder, model)
    trainable = Trainable(model, encoder=layout_of(config).encoder is not None).to(device)
    shares = []
    for twice in (0.0, 1.0):
        options = {
            "split": "evaluation",
            "twice": twice,
            "questions": 1,
            "facts": [28, 28],
            "filler": 0.3,
            "rival": 0.2,
        }
        data = Data(lengths=[1136], synthetic=Synthetic("documents", documents, 2, options))
        rows = open_rows(data, "mini", Path(config.cache))
        values = validate(
            trainable, rows, data.lengths, layout_of(config), device,
            batch_size=BATCH, batches=documents // BATCH, autocast=nullcontext(),
        )  # fmt: skip
        shares.append(values["answers"])
    return shares


def report(runs: list[Run], name: str, documents: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"mini-{name}, backend {runs[0].stages[-1].backend}, {place}, {documents} documents")
    print(
        f"{'seed':>8}{'stage':>7}{'step':>7}{'of':>7}{'loss':>9}{'tokens/s':>10}{'seconds':>9}{'once':>8}{'twice':>8}"
    )
    finished = []
    for run in runs:
        reached = run.reached()
        if reached is None:
            print(f"{run.seed:>8}  no checkpoint yet: {run.log}")
            continue
        index, folder = reached
        stage = run.stages[index]
        with (Path(stage.output) / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[-10:]
        loss = statistics.mean(float(row["loss"]) for row in rows)
        speed = statistics.median(float(row["tokens_per_second"]) for row in rows)
        once, twice = accuracy(stage, folder, documents, device)
        step = checkpoint.step_of(folder)
        print(
            f"{run.seed:>8}{index + 1:>7}{step:>7,}{stage.steps:>7,}{loss:>9.4f}{speed:>10,.0f}{run.seconds:>9.0f}"
            f"{once:>8.3f}{twice:>8.3f}",
            flush=True,
        )
        if index + 1 == len(run.stages) and step == stage.steps:
            finished.append((once, twice))
    if len(finished) > 1:
        means, spreads = (
            [f(column) for column in zip(*finished, strict=True)] for f in (statistics.mean, statistics.stdev)
        )
        print(f"{'mean':>8}{'':>49}{means[0]:>8.3f}{means[1]:>8.3f}   of {len(finished)} finished seeds")
        print(f"{'std':>8}{'':>49}{spreads[0]:>8.3f}{spreads[1]:>8.3f}")
    folder = minis.FOLDER / f"mini-{name}"
    last = runs[0].stages[-1]
    shipped = Config(**{**vars(last), "model": json.loads((folder / "config.json").read_text())})
    once, twice = accuracy(shipped, folder, documents, device)
    print(f"{'shipped':>8}{'':>49}{once:>8.3f}{twice:>8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["attn", "based", "jrt", "mamba"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backend", default="auto", help="auto: compiled kernels and Triton gradients on a GPU")
    parser.add_argument(
        "--time-limit", type=float, default=420, metavar="SECONDS", help="training, tokenising included"
    )
    parser.add_argument("--documents", type=int, default=384, help=f"evaluation documents, a multiple of {BATCH}")
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    if given.documents < BATCH or given.documents % BATCH:
        parser.error(f"--documents must be a multiple of {BATCH}")
    try:
        runs = prepare(given)
        train(runs, given.name, given.time_limit)
        report(runs, given.name, given.documents)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
