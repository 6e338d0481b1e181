"""Time and memory of collect, scores, compare and report for a million predictions (about 2 GB of samples).

    python benchmarks/bench_collect.py [--predictions 1000000] [--workers 2] [--folder /tmp/bench_collect] [--keep]

Writes lm-eval output of 10 models x 10 tasks with 2 KB lines, collects it, collects again (all known), adds one run and
collects that, and then runs the commands that read what was collected. Prints a table of seconds (elapsed and CPU) and
peak memory (all processes together, sampled).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MODELS, TASKS = 10, 10
DATE = "2026-01-01T00-00-00.000000"


def write_run(folder: Path, model: str, documents: int, prompt: int = 1500) -> None:
    """One model's results and samples, in the layout of lm-eval 0.4.13."""
    draw = random.Random(model)
    words = Path(__file__).read_text(encoding="utf-8").split()
    text = " ".join(draw.choice(words) for _ in range(200_000))
    here = folder / model
    here.mkdir(parents=True)
    results, configs = {}, {}
    for index in range(TASKS):
        task = f"jrt_task{index // 2}" + ("_twice" if index % 2 else "")
        results[task] = {
            "name": task,
            "alias": task,
            "sample_len": documents,
            "contains,none": 0.5,
            "contains_stderr,none": 0.1,
        }
        configs[task] = {"task": task, "metadata": {"version": 1.0, "context_length": 1000, "answer_length": 50}}
        with (here / f"samples_{task}_{DATE}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(documents):
                at = draw.randrange(len(text) - prompt)
                passage = f"{row} " + text[at : at + prompt]
                sample = {
                    "doc_id": row,
                    "doc": {"doc_id": f"d{row}", "question": "What is it", "value": f"v{row % 97}"},
                    "target": f"v{row % 97}",
                    "arguments": {"gen_args_0": {"arg_0": passage, "arg_1": {"until": ["\n"], "max_gen_toks": 48}}},
                    "resps": [[f" v{row % 89}."]],
                    "filtered_resps": [f" v{row % 89}."],
                    "filter": "none",
                    "metrics": ["contains", "exact_match", "f1"],
                    "doc_hash": "0" * 64,
                    "prompt_hash": hashlib.sha256(passage.encode()).hexdigest(),
                    "target_hash": "0" * 64,
                    "contains": float(row % 2),
                    "exact_match": 0.0,
                    "f1": 0.25,
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
    run = {
        "results": results,
        "configs": configs,
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": {task: {"original": documents, "effective": documents} for task in results},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "limit": None, "batch_size": "8"},
        "date": 1.7e9,
        "lm_eval_version": "0.4.13",
        "model_source": "hf",
        "model_name": model,
        "model_name_sanitized": model,
    }
    (here / f"results_{DATE}.json").write_text(json.dumps(run), encoding="utf-8")


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and its children (proportional share, so that shared pages count once)."""
    total = 0
    for candidate in [pid, *children(pid)]:
        try:
            for line in Path(f"/proc/{candidate}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task")
        return [int(c) for task in tasks.iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return []


def timed(command: list[str]) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of CPU, and peak memory of a command."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_memory(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} failed with {code}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, peak[0]


def row(name: str, command: list[str]) -> None:
    """Run a command and print its row."""
    seconds, cpu, memory = timed(command)
    print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {memory / 1e6:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the folder for another run")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="bench_collect-"))
    runs = folder / "runs"
    documents = args.predictions // (MODELS * TASKS)
    if not runs.exists():
        for index in range(MODELS):
            write_run(runs, f"model{index}", documents)
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(runs / "late", ignore_errors=True)
    size = sum(path.stat().st_size for path in runs.rglob("*.jsonl")) / 1e6
    program = [sys.executable, "-c", "from jrt_eval.cli import cli; cli()"]
    out = str(folder / "out")
    collect = [*program, "collect", str(runs), "-o", out, "--workers", str(args.workers)]
    print(f"{documents * MODELS * TASKS:,} predictions, {size:,.0f} MB of samples, {args.workers} workers\n")
    print("| command | seconds | CPU seconds | peak memory (MB) |\n| --- | ---: | ---: | ---: |")
    row("collect", collect)
    row("collect again, nothing new", collect)
    write_run(runs, "late", max(documents // 10, 1))
    row("collect again, one small run more", collect)
    page = folder / "report.html"
    row("scores", [*program, "scores", out])
    row("compare --table prompt", [*program, "compare", out, "--table", "prompt"])
    row("compare", [*program, "compare", out])
    row("compare --versus", [*program, "compare", out, "--versus", "model0", "model1"])
    row("report", [*program, "report", out, "-o", str(page)])
    written = sum(path.stat().st_size for path in (folder / "out").rglob("*")) / 1e6
    print(f"\n{written:,.0f} MB collected, a page of {page.stat().st_size / 1e6:.1f} MB")
    if not args.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
