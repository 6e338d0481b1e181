"""Speed of the models on a CPU: against transformers' Llama of the same size, at two contexts, with a shared context, and of loading.

    python benchmarks/bench_models.py [prefill] [decode] [share] [load]

Random weights in the released shapes. The figures are medians of interleaved repetitions in one process; OMP_NUM_THREADS sets the
threads. `load` writes a 1.3B checkpoint (5.4 GB) to a temporary folder and loads it in another process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jrt_eval.bench.configs import llama_config, released_config
from jrt_eval.bench.timing import medians
from jrt_eval.models import from_config, save_pretrained


def model_of(name: str) -> Any:
    return from_config(released_config(name), seed=0).eval()


def row(what: str, model: str, *figures: str) -> None:
    """One line of the Markdown table."""
    print(f"| {what} | {model} | " + " | ".join(figures) + " |", flush=True)


def prefill(families: list[str], length: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Tokens per second of a prefill, with the logits of the last token only."""
    from transformers import LlamaForCausalLM

    ids = torch.randint(0, 50257, (1, length))
    readers: dict[str, Callable[[torch.Tensor], Any]] = {}
    hf = LlamaForCausalLM(llama_config("360m")).eval()
    base = f"transformers Llama, {hf.num_parameters() / 1e6:.0f}M"
    readers[base] = lambda ids: hf(ids, use_cache=True, logits_to_keep=1)
    for family in families:
        model = model_of(f"{family}-360m")
        readers[f"{family}, {model.num_parameters() / 1e6:.0f}M"] = lambda ids, model=model: model.prefill(ids.tolist())
    with torch.inference_mode():
        result = medians({name: partial(read, ids) for name, read in readers.items()}, repetitions, clock)
    for name, seconds in result.items():
        row(
            f"prefill of {length:,} tokens", name, f"{length / seconds:,.0f} tokens/s", f"{result[base] / seconds:.2f}x"
        )


def decode(families: list[str], contexts: list[int], tokens: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Milliseconds per token after contexts of several lengths."""
    for family in families:
        model = model_of(f"{family}-360m")
        runs = {}
        with torch.inference_mode():
            for context in contexts:
                state = model(torch.randint(0, 50257, (1, 256)), encoder_lengths=torch.tensor([256])).state
                assert state is not None
                while int(state.length) < context:
                    # the state after a long context, without its logits
                    _, state = model.hidden(torch.randint(0, 50257, (1, 256)), state=state)

                def run(state: Any = state, model: Any = model) -> None:
                    for _ in range(tokens):
                        model.step(torch.tensor([7]), state)

                runs[context] = run
            result = medians({str(context): run for context, run in runs.items()}, repetitions, clock)
        base = next(iter(result.values()))
        for context, seconds in result.items():
            row(
                f"decoding at context {int(context):,}",
                family,
                f"{1e3 * seconds / tokens:.2f} ms/token",
                f"{seconds / base:.2f}x",
            )


def share(families: list[str], length: int, choices: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Scoring several continuations of one context together, against scoring them one by one."""
    context, answers = torch.randint(0, 50257, (length,)).tolist(), torch.randint(0, 50257, (choices, 4)).tolist()
    for family in families:
        model = model_of(f"{family}-360m")

        def together(model: Any = model) -> None:
            model.score([context] * choices, answers)

        def alone(model: Any = model) -> None:
            for answer in answers:
                model.score([context], [answer])

        with torch.inference_mode():
            result = medians({"one by one": alone, "together": together}, repetitions, clock)
        for name, seconds in result.items():
            row(
                f"{choices} continuations of one {length:,}-token context, {name}",
                family,
                f"{seconds:.2f} s",
                f"{result['one by one'] / seconds:.2f}x",
            )


def load() -> None:
    """Peak memory and time of loading a 1.3B checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model_of("jrt-1b"), folder)
        size = (Path(folder) / "pytorch_model.bin").stat().st_size
        code = (
            "import sys, time, resource, jrt_eval; start = time.perf_counter();"
            "model = jrt_eval.load_model(sys.argv[1], device='cpu');"
            "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        seconds, peak = map(float, done.stdout.split())
    row(
        f"loading a file of {size / 1e9:.2f} GB: {seconds:.1f} s",
        "jrt, 1375M",
        f"peak memory {peak / 1e9:.2f} GB",
        f"{peak / size:.2f}x the file",
    )


PARTS = ["prefill", "decode", "share", "load"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--families", default="jrt,based")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure the processor time of this process, not the time of day"
    )
    args = parser.parse_args()
    if unknown := set(args.what) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(PARTS)}")
    what = args.what or PARTS
    clock = time.process_time if args.cpu_time else time.perf_counter
    families = args.families.split(",")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, medians of {args.repetitions}\n")
    print("| what | model | figure | relative |\n| --- | --- | --- | --- |")
    if "prefill" in what:
        prefill(families, args.length, args.repetitions, clock)
    if "decode" in what:
        decode(families, [256, 8192], 16, max(5, args.repetitions), clock)
    if "share" in what:
        share(families, 512, 8, args.repetitions, clock)
    if "load" in what:
        load()


if __name__ == "__main__":
    main()
