"""Runs a task in all its variants through lm_eval, and prints scores and paired differences to `twice`.

    python benchmarks/variants.py --task jrt_mini --limit 40 --output results/variants/minis mini-based mini-mamba
    python benchmarks/variants.py --task jrt_squad --limit 60 --output results/variants/smollm2 FOLDER --metadata '{"data_dir": "DOCUMENTS"}'

Writes `scores.csv`, a row per model, variant and document, and prints a table that is made from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

from jrt_eval.prompts.variants import VARIANTS

Scores = dict[tuple[str, str], dict[int, float]]  # (model, variant) -> row of the data set -> contains


def evaluate(model: str, task: str, limit: int, metadata: str, folder: str) -> Scores:
    """One lm_eval process for all variants of one model."""
    names = {variant: task if variant == "once" else f"{task}_{variant}" for variant in VARIANTS}
    command = [
        sys.executable,
        "-P",
        "-m",
        "lm_eval",
        "run",
        "--model",
        "jrt",
        "--model_args",
        f"pretrained={model},dtype=float32",
    ]
    command += ["--tasks", ",".join(names.values()), "--limit", str(limit), "--batch_size", "8", "--device", "cpu"]
    command += ["--metadata", metadata, "--output_path", folder, "--log_samples"]
    subprocess.run(command, check=True)
    scores: Scores = {}
    for variant, name in names.items():
        (file,) = Path(folder).rglob(f"samples_{name}_[0-9]*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        scores[Path(model).name, variant] = {s["doc"]["jrt_row"]: s["contains"] for s in samples}
    return scores


def read(path: Path) -> Scores:
    scores: Scores = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            scores[row["model"], row["variant"]][int(row["row"])] = float(row["contains"])
    return scores


def write(path: Path, scores: Scores) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "variant", "row", "contains"])
        for (model, variant), rows in scores.items():
            writer.writerows([model, variant, row, value] for row, value in rows.items())


def table(scores: Scores) -> str:
    """Mean `contains` in percent with its standard error, and the paired difference to `twice` with its own."""
    lines = [f"{'model':<14}{'variant':<16}{'n':>5}{'contains':>16}{'minus twice':>18}"]
    for (model, variant), rows in scores.items():
        twice = scores[model, "twice"]
        cells = _mean(list(rows.values())), _mean([value - twice[row] for row, value in rows.items()], "+")
        lines.append(f"{model:<14}{variant:<16}{len(rows):5}{cells[0]:>16}{'' if variant == 'twice' else cells[1]:>18}")
    return "\n".join(lines)


def _mean(values: list[float], sign: str = "") -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * fmean(values):{sign}.1f} ± {100 * error:4.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", nargs="*", help="what --model_args pretrained= takes; none: print the table of --output"
    )
    parser.add_argument("--task", default="jrt_mini")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--metadata", default="{}")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    path = options.output / "scores.csv"
    scores: Scores = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            scores |= evaluate(model, options.task, options.limit, options.metadata, folder)
        write(path, scores)
    print(table(read(path)))


if __name__ == "__main__":
    main()
