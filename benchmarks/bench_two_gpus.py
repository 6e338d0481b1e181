"""Two GPUs of one machine against one: `lm_eval`, `jrt-eval sweep` and `jrt-eval train`, each as separate processes, as users run them.

    python benchmarks/bench_two_gpus.py [--parts lm_eval,sweep,train] [--shape 1b] [--out runs/two_gpus]

lm_eval  `accelerate launch` of `lm_eval --model jrt` with a 1.3B JRT-RNN on read-twice prompts: documents/s, and that the answers are equal
sweep    four jobs with the local engine; on two GPUs one job is killed in the middle: seconds, and that no answer is lost or different
train    torchrun of configs/paper/jrt-360m.yaml: tokens/s after the first steps, and the largest difference of a step's loss

Models have random weights and documents are generated, so that no network is needed. About 8 minutes on two H100s. With `--shape tiny
--device cpu` it only tries out the commands.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_training import write_text

from jrt_eval.bench.configs import released_config, tiny_config
from jrt_eval.processes import child_environment, python_module

ROOT = Path(__file__).parents[1]
TASK = "jrt_nq_2048_twice"
WARMUP = 10  # training steps whose speed does not count
# lm-eval's progress bar when it has ended: its rate is the average over the whole run.
BAR = re.compile(r"Running generate_until requests:\s+100%\|[^|]*\|\s*(\d+)/\1 \[[^\]]*?,\s*([\d.]+)(it/s|s/it)")


class Failed(Exception):
    """A command failed; the message is for the reader."""


def run(command: list[str], log: Path, gpus: str, **environment: str) -> tuple[float, str]:
    """Run a command with the GPUs `gpus`. Returns its seconds and its output, which is also in `log`."""
    print(f"  $ CUDA_VISIBLE_DEVICES={gpus} {' '.join(command[1:])[:230]}", flush=True)
    env = child_environment({"CUDA_VISIBLE_DEVICES": gpus, "HF_HUB_OFFLINE": "1", **environment})
    began = time.perf_counter()
    with log.open("w") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=log.parent).returncode
    seconds = time.perf_counter() - began
    text = log.read_text(errors="replace")
    if status != 0:
        raise Failed(f"exit status {status}; the end of {log}:\n{text[-1500:]}")
    return seconds, text


def write_documents(folder: Path, documents: int, words: int) -> None:
    """Rows of a data set for the task: random words, and an answer from the middle of each document."""
    dice = random.Random(0)
    vocabulary = ["".join(dice.choices("abcdefghijklmnoprstuvwy", k=dice.randint(2, 6))) for _ in range(2000)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "validation.jsonl").open("w") as file:
        for number in range(documents):
            text = dice.choices(vocabulary, k=words)
            row = {"id": str(number), "question": "Which word?", "orig_question": "Which word?"}
            row |= {"context": " ".join(text), "answers": [text[words // 2]]}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path, shape: str, device: str) -> None:
    """A JRT-RNN with random weights and the tokenizer of the minis."""
    from transformers import AutoTokenizer

    from jrt_eval.minis import TOKENIZER
    from jrt_eval.models import from_config, save_pretrained

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, trust_remote_code=False)
    config = tiny_config() if shape == "tiny" else released_config("jrt-1b")
    config |= {"vocab_size": len(tokenizer), "pad_vocab_size_multiple": 8}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = from_config(config, device=device, dtype=dtype, seed=0)
    print(f"  model: {model.num_parameters() / 1e6:,.0f}M parameters", flush=True)
    save_pretrained(model, folder, safetensors=True)
    tokenizer.save_pretrained(folder)


def answers(folder: Path) -> dict[tuple[str, int], str]:
    """(samples folder of a unit or run, document) -> answer, of all samples under `folder`."""
    found = {}
    for path in folder.rglob(f"samples_{TASK}_*.jsonl"):
        unit = path.parent.parent.name if path.parent.parent != folder else ""
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found[unit, sample["doc_id"]] = sample["filtered_resps"][0]
    return found


def compare(one: dict[Any, str], two: dict[Any, str]) -> str:
    equal = sum(two.get(key) == text for key, text in one.items())
    return f"{equal} of {len(one)} answers equal" + ("" if len(one) == len(two) else f", {len(two)} answers with two")


def metadata(args: argparse.Namespace) -> dict[str, Any]:
    return {"data_dir": str(args.out / "data"), "tokenizer": "mini", "context_length": args.tokens // 2 + 25}


def launcher(args: argparse.Namespace, processes: int, module: str, *arguments: str) -> list[str]:
    """A command that runs a module in one process, or in several that talk to each other."""
    if processes == 1:
        return python_module(module, *arguments)
    if args.device == "cpu" or module == "jrt_eval":
        return python_module("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module, *arguments)
    launch = (
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    )
    return python_module("accelerate.commands.launch", *launch, "-m", module, *arguments)


def environment(args: argparse.Namespace) -> dict[str, str]:
    return {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} if args.device == "cpu" else {}


def lm_eval_part(args: argparse.Namespace) -> None:
    rates: dict[int, float] = {}
    for processes, gpus in ((1, "0"), (2, "0,1")):
        out = args.out / f"lm_eval-{processes}"
        command = launcher(
            args, processes, "lm_eval", "run", "--model", "jrt", "--model_args", f"pretrained={args.out / 'model'}",
            "--tasks", TASK, "--metadata", json.dumps(metadata(args)), "--batch_size", str(args.batch), "--limit", str(args.documents),
            "--output_path", str(out), "--log_samples", *(("--device", "cpu") if args.device == "cpu" else ()),
        )  # fmt: skip
        seconds, text = run(command, args.out / f"lm_eval-{processes}.log", gpus, **environment(args))
        bars = BAR.findall(text)
        if not bars:
            raise Failed(f"no progress bar at its end in {args.out / f'lm_eval-{processes}.log'}")
        share, speed, unit = bars[-1]
        generating = int(share) / (float(speed) if unit == "it/s" else 1 / float(speed))
        rates[processes] = args.documents / generating
        print(
            f"lm_eval, {processes} process(es): {args.documents} documents in {generating:.1f} s of generation, "
            f"{rates[processes]:.2f} documents/s; {seconds:.1f} s with start and loading",
            flush=True,
        )
    print(
        f"lm_eval: {rates[2] / rates[1]:.2f}x with two GPUs; {compare(*(answers(args.out / f'lm_eval-{n}') for n in (1, 2)))}"
    )


def write_sweep(args: argparse.Namespace) -> Path:
    gpus = 0 if args.device == "cpu" else 1
    sweep = {
        "name": "two_gpus",
        "models": [{"name": "jrt", "type": "jrt", "args": {"pretrained": str(args.out / "model")}}],
        "tasks": [TASK],
        "settings": [{"name": str(n), "seed": n} for n in range(4)],  # four jobs of equal length
        "metadata": metadata(args),
        "limit": max(4, args.documents // 4),
        "batch_size": args.batch,
        "resources": {"gpus": gpus, "cpus": 1 if gpus == 0 else 4},
    }
    path: Path = args.out / "two_gpus.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def processes_of(folder: Path) -> Iterator[int]:
    """The lm_eval processes of running jobs that have answered something."""
    for status in folder.glob("jobs/*/.status.json"):
        found = json.loads(status.read_text())
        if found.get("state") == "running" and list(status.parent.glob("cache/*.db")):
            yield int(found["pid"])


def sweep_part(args: argparse.Namespace) -> None:
    file = write_sweep(args)
    seconds: dict[int, float] = {}
    for number, gpus in ((1, "0"), (2, "0,1")):
        out, log = args.out / f"sweep-{number}", args.out / f"sweep-{number}.log"
        command = python_module("jrt_eval", "sweep", "run", str(file), "-o", str(out), "--engine", args.engine)
        print(f"  $ CUDA_VISIBLE_DEVICES={gpus} {' '.join(command[1:])}", flush=True)
        began = time.perf_counter()
        with log.open("w") as file_log:
            env = child_environment({"CUDA_VISIBLE_DEVICES": gpus, "HF_HUB_OFFLINE": "1"})
            process = subprocess.Popen(command, stdout=file_log, stderr=subprocess.STDOUT, env=env)
        killed = None
        while process.poll() is None:
            time.sleep(0.2)
            if number == 2 and killed is None:
                for killed in processes_of(out):
                    time.sleep(2)
                    os.kill(killed, signal.SIGKILL)
                    print(
                        f"  killed process {killed} of a job, {time.perf_counter() - began:.0f} s after the start",
                        flush=True,
                    )
                    break
        seconds[number] = time.perf_counter() - began
        if process.returncode != 0:
            raise Failed(f"sweep: exit status {process.returncode}; the end of {log}:\n{log.read_text()[-1500:]}")
        print(f"sweep, {number} GPU(s): {seconds[number]:.1f} s", flush=True)
    same = compare(*(answers(args.out / f"sweep-{n}" / "results") for n in (1, 2)))
    print(f"sweep: {seconds[1] / seconds[2]:.2f}x with two GPUs and one job killed; {same}")


def train_part(args: argparse.Namespace) -> None:
    write_text(args.out / "train.jsonl", args.train_batch * 40)
    losses, speeds = {}, {}
    tiny = (
        [f"model={json.dumps(tiny_config())}", "data.lengths=[128]", "precision=fp32"] if args.shape == "tiny" else []
    )
    for processes, gpus in ((1, "0"), (2, "0,1")):
        out = args.out / f"train-{processes}"
        settings = [
            f"output={out}", f"cache={args.out}/tokens", "tokenizer=mini", f"backend={args.backend}", f"steps={args.steps}",
            f'data.files=["{args.out}/train.jsonl"]', "validation=null", f"batch_size={args.train_batch}",
            f"micro_batch={min(8, args.train_batch // 2)}", "log_every=1", "tensorboard=false", "optimizer.warmup=0.1",
            f"save_every={args.steps}", *tiny,
        ]  # fmt: skip
        overrides = [part for setting in settings for part in ("--set", setting)]
        config = str(ROOT / "configs" / "paper" / "jrt-360m.yaml")
        command = launcher(args, processes, "jrt_eval", "train", config, *overrides)
        run(command, args.out / f"train-{processes}.log", gpus, **environment(args))
        with (out / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        losses[processes] = [float(row["loss"]) for row in rows]
        speeds[processes] = statistics.median(
            float(row["tokens_per_second"]) for row in rows[min(WARMUP, len(rows) // 2) :]
        )
        print(
            f"train, {processes} process(es): {speeds[processes]:,.0f} tokens/s, last loss {losses[processes][-1]:.4f}",
            flush=True,
        )
    largest = max(abs(a - b) for a, b in zip(losses[1], losses[2], strict=True))
    print(f"train: {speeds[2] / speeds[1]:.2f}x with two processes; largest difference of a step's loss {largest:.2e}")


PARTS = {"lm_eval": lm_eval_part, "sweep": sweep_part, "train": train_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, with commas")
    parser.add_argument("--shape", choices=["1b", "tiny"], default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/two_gpus"), help="a new folder for models, logs and results"
    )
    parser.add_argument("--tokens", type=int, default=2000, help="of a prompt")
    parser.add_argument("--documents", type=int, default=1280, help="of lm_eval; a sweep's jobs take a quarter each")
    parser.add_argument("--batch", type=int, default=32, help="of lm_eval")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--backend", default="auto", help="kernels that training uses")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="of the sweep")
    args = parser.parse_args()
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        parser.error(
            f"two GPUs are needed, PyTorch sees {torch.cuda.device_count()}; --device cpu --shape tiny only tries it out"
        )
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    if set(chosen) & {"lm_eval", "sweep"}:
        write_documents(args.out / "data" / "based_nq_2048", args.documents, args.tokens)
        write_model(args.out / "model", args.shape, args.device)
    failed = 0
    for name in chosen:
        print(f"--- {name}", flush=True)
        for earlier in args.out.glob(f"{name}-[12]"):  # a sweep and a training run would continue there
            shutil.rmtree(earlier)
        try:
            PARTS[name](args)
        except (Failed, OSError, ValueError, KeyError) as error:  # the other parts are wanted all the same
            failed += 1
            print(f"{name}: FAILED: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
