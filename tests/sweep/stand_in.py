"""A substitute for `lm_eval run --config FILE` with the same input and output files, which takes a twentieth of a second.

The sweep file's `metadata` asks for more:
`trouble: {TASK: crash | oom | killed | hang | silent | cut}`. `fits: N` is the largest batch size at which `oom` and `killed`
do not happen. `answers: N` with `delay: S` writes N answers into a cache as lm-eval does, S seconds each. `model_folder` is the folder
that lm-eval names after the model. Every start adds a line to `journal`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    asked = config.get("metadata", {})
    tasks = config["tasks"]
    if "journal" in asked:
        note = {
            "pid": os.getpid(),
            "folder": os.getcwd(),
            "tasks": tasks,
            "batch": config["batch_size"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "model": config["model_args"]["pretrained"],
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        with open(asked["journal"], "a") as journal:
            journal.write(json.dumps(note) + "\n")
    for task in tasks:
        trouble(asked.get("trouble", {}).get(task), config["batch_size"], asked)
    if "answers" in asked:
        answer(Path(config["use_cache"] + "_rank0.db"), asked["answers"], asked["delay"])
    for task in tasks:
        results(Path(config["output_path"]), config, task, asked.get("trouble", {}).get(task))


def trouble(kind: str | None, batch: Any, asked: dict[str, Any]) -> None:
    fits = isinstance(batch, int) and batch <= asked.get("fits", 0)
    if kind == "crash":
        raise RuntimeError("this task is broken")
    if kind == "oom" and not fits:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB")
    if kind == "killed" and not fits:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":  # with a process of its own, which must go too
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        time.sleep(1000)


def answer(cache: Path, prompts: int, delay: float) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.touch()
    for number in range(len(cache.read_text()), prompts):
        share = f"{100 * number // prompts}%|##   | {number}/{prompts}"
        print(f"\rRunning generate_until requests:  {share} [00:01<00:02,  9.50it/s]", end="", flush=True)
        time.sleep(delay)
        with open(cache, "a") as file:
            file.write("x")


def results(out: Path, config: dict[str, Any], task: str, kind: str | None) -> None:
    if kind == "silent":  # lm-eval reports a full disk in its log and exits with 0
        return
    folder = out / config.get("metadata", {}).get("model_folder", "model")
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.now().isoformat().replace(":", "-")
    found = {
        "results": {task: {"alias": task, "contains,none": 0.5, "contains_stderr,none": 0.1}},
        "configs": {task: {"task": task, "metadata": config.get("metadata", {})}},
        "versions": {task: 1},
        "n-shot": {task: 0},
        "n-samples": {task: {"original": 4, "effective": 4}},
        "config": {"model": config["model"], "model_args": config["model_args"], "batch_size": config["batch_size"]},
        "lm_eval_version": "0.4.13",
        "date": time.time(),
    }
    (folder / f"results_{date}.json").write_text(json.dumps(found))
    lines = [json.dumps({"doc_id": i, "doc": {}, "resps": [["a"]], "contains": 0.5}) + "\n" for i in range(4)]
    text = "".join(lines)
    (folder / f"samples_{task}_{date}.jsonl").write_text(text[:-20] if kind == "cut" else text)


if __name__ == "__main__":
    main()
