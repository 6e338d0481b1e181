"""Train JRT-RNN with the compiled kernels and their Triton gradients, and with `parallel`, which is plain PyTorch.

Model, optimizer and row length are those of configs/paper/jrt-360m.yaml. The text is random (Markov chains of words), so the losses
show only whether both runs learn the same. Prints losses, tokens per second and peak memory.
Usage: python benchmarks/bench_training.py [--steps 60] [--batch-size 16] [--config FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
from pathlib import Path

import torch

from jrt_eval.errors import UserError
from jrt_eval.training.stages import load_stages, train_stages

ROOT = Path(__file__).parents[1]
BACKENDS = ("auto", "parallel")
WARMUP = 10  # steps without timing, in which kernels are compiled


def write_text(path: Path, rows: int, words: int = 1200) -> None:
    """Rows of random text: each of 400 words is followed by one of three others."""
    dice = random.Random(0)
    vocabulary = ["".join(dice.choices("abcdefghijklmnoprstuvwy", k=dice.randint(2, 7))) for _ in range(400)]
    followers = {word: dice.choices(vocabulary, k=3) for word in vocabulary}
    with path.open("w") as file:
        for _ in range(rows):
            text = [dice.choice(vocabulary)]
            while len(text) < words:
                text.append(dice.choice(followers[text[-1]]))
            file.write(json.dumps({"text": " ".join(text)}) + "\n")


def run(folder: Path, config: Path, backend: str, steps: int, batch_size: int) -> tuple[list[float], float, float]:
    """The loss of every step, tokens per second, and peak memory in GiB."""
    files = f'["{folder}/train.jsonl"]'
    settings = (
        f"output={folder}/{backend}", f"cache={folder}/tokens", "tokenizer=mini", f"backend={backend}", f"steps={steps}",
        f"data.files={files}", "validation=null", f"batch_size={batch_size}", f"micro_batch={min(8, batch_size)}", "log_every=1",
        "tensorboard=false", "optimizer.warmup=0.1", f"save_every={steps}",
    )  # fmt: skip
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    train_stages(load_stages(config, settings), progress=False)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    with (folder / backend / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row["tokens_per_second"]) for row in rows[min(WARMUP, len(rows) - 1) :]]
    return [float(row["loss"]) for row in rows], statistics.median(speeds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "paper" / "jrt-360m.yaml")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "train.jsonl", given.batch_size * 40)
        try:
            found = {name: run(Path(folder), given.config, name, given.steps, given.batch_size) for name in BACKENDS}
        except UserError as error:
            parser.error(str(error))
    ours, theirs = (found[name][0] for name in BACKENDS)
    print(f"{'step':>5} {BACKENDS[0]:>9} {BACKENDS[1]:>9}   loss")
    for step in sorted({*range(0, given.steps, max(1, given.steps // 10)), given.steps - 1}):
        print(f"{step + 1:>5} {ours[step]:>9.4f} {theirs[step]:>9.4f}")
    print(f"largest difference of a step's loss: {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.4f}")
    for name, (_, speed, peak) in found.items():
        print(f"{name}: {speed:,.0f} tokens/s, {peak:.1f} GiB at most")


if __name__ == "__main__":
    main()
