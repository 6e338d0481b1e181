"""Whole models on a GPU, called directly: prefill, documents per second with 48 new tokens, and a decode step. Random weights, bfloat16.

    python benchmarks/bench_gpu_models.py [mamba mamba2 jrt based] [--shapes 32x2000,8x1000] [--profile]

`mamba` and `mamba2` have 1.4B parameters, `jrt` and `based` 1.3B. The step is replayed from its CUDA graph. Its time is also given as a
multiple of the time that reading the weights, and reading and writing the states, takes at the rate of a copy. --profile prints the
kernels in which a prefill and a step spend their time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from bench_end_to_end import time_by_kernel
from bench_recurrences import copy_rate

from jrt_eval.bench.configs import released_config
from jrt_eval.bench.model import build
from jrt_eval.bench.timing import medians

NEW = 48  # tokens that a task generates
ROUNDS = 3
CUDA = torch.device("cuda")
# The layers of state-spaces/mamba-1.4b; the paper's own Mamba has 46.
MODELS: dict[str, dict[str, Any]] = {
    "mamba": released_config("mamba-1b") | {"n_layer": 48},
    "mamba2": released_config("mamba2-1b") | {"n_layer": 48},
    "jrt": released_config("jrt-1b"),
    "based": released_config("based-1b"),
}


def profile(what: str, run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()
    cost = time_by_kernel(run, CUDA)
    total = sum(spent for _, spent, _ in cost)
    print(f"    {what}: {total / 1e3:.2f} ms in {sum(count for _, _, count in cost)} kernels")
    for key, spent, count in cost[:14]:
        print(f"      {spent / 1e3:8.3f} ms {spent / total:6.1%} {count:5d} x {spent / count:7.1f} us  {key[:90]}")


@torch.inference_mode()
def measure(name: str, model: Any, batch: int, length: int, rate: float, profiled: bool) -> None:
    prompts = torch.randint(256, 50000, (batch, length)).tolist()
    runs: dict[str, Callable[[], object]] = {
        "prefill": lambda: model.generate(prompts, max_new_tokens=1),
        "whole": lambda: model.generate(prompts, max_new_tokens=NEW),
    }
    found = medians(runs, ROUNDS, device=CUDA)
    logits, state = model.prefill(prompts)
    token = logits.argmax(-1)
    step = model.stepper(state, NEW)
    taken = medians({"steps": lambda: [step(token) for _ in range(20)]}, ROUNDS, device=CUDA)["steps"] / 20
    moved = sum(p.nbytes for p in model.parameters()) + 2 * state.nbytes()
    print(
        f"{name:7} {batch:3} x {length:5,}: prefill {batch * length / found['prefill']:8,.0f} tokens/s, "
        f"{batch / found['whole']:6.1f} documents/s; step {taken * 1e3:6.3f} ms, {taken / (moved / rate):.2f} times the "
        "weights and states at a copy's rate",
        flush=True,
    )
    if profiled:
        profile("prefill", lambda: model.prefill(prompts))
        profile("step", lambda: step(token))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--shapes", default="32x2000,8x1000", help="batch x prompt length")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if unknown := sorted(set(given.models) - set(MODELS)):
        parser.error(f"unknown model {unknown[0]}; there are {', '.join(MODELS)}")
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU")
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy moves {rate / 1e9:,.0f} GB/s")
    for name in given.models:
        model = build(MODELS[name], CUDA).to(torch.bfloat16)
        for shape in given.shapes.split(","):
            batch, length = map(int, shape.split("x"))
            measure(name, model, batch, length, rate, given.profile)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
