"""Whole models on a GPU, called directly: prefill, documents per second with 48 new tokens, and a decode step. Random weights, bfloat16.

    python benchmarks/bench_gpu_models.py [mamba mamba2 jrt based] [--shapes 32x2000,8x1000] [--profile]

`mamba` and `mamba2` have 1.4B parameters, `jrt` and `based` 1.3B. The step is replayed from its CUDA graph; next to it stands the time
that reading the weights and reading and writing the states takes at the rate of a copy. --profile prints the kernels in which a prefill
and a step spend their time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from jrt_eval.bench.configs import released_config
from jrt_eval.models import from_config
from jrt_eval.models.recurrent.mamba import MambaModel, read_transformers

NEW = 48  # tokens that a task generates
ROUNDS = 3


def mamba(version: int) -> Any:
    import transformers

    common = {"vocab_size": 50288, "hidden_size": 2048, "num_hidden_layers": 48, "tie_word_embeddings": True}
    if version == 1:
        raw = transformers.MambaConfig(**common).to_dict()
        raw["architectures"] = ["MambaForCausalLM"]
    else:
        raw = transformers.Mamba2Config(**common, num_heads=64, head_dim=64, state_size=128, n_groups=1).to_dict()
        raw["architectures"] = ["Mamba2ForCausalLM"]
    with torch.device("meta"):
        model = MambaModel(read_transformers(raw), raw)
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    model.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.copy_(torch.rand(weight.shape) * 2.7)
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                weight.fill_(-4.0)
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0, 0.02)
    return model.eval()


MODELS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: mamba(1),
    "mamba2": lambda: mamba(2),
    "jrt": lambda: from_config(released_config("jrt-1b"), seed=0).to("cuda", torch.bfloat16).eval(),
    "based": lambda: from_config(released_config("based-1b"), seed=0).to("cuda", torch.bfloat16).eval(),
}


def seconds(run: Callable[[], object]) -> float:
    """The median of some calls after a warm-up of two."""
    times = []
    for count in range(ROUNDS + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if count >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**31 / seconds(lambda: target.copy_(source))


def profile(what: str, run: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    cost = {e.key: (float(e.self_device_time_total), e.count) for e in seen.key_averages()}
    total = sum(spent for spent, _ in cost.values())
    print(f"    {what}: {total / 1e3:.2f} ms in {sum(n for _, n in cost.values())} kernels")
    for key, (spent, count) in sorted(cost.items(), key=lambda item: -item[1][0])[:14]:
        print(f"      {spent / 1e3:8.3f} ms {spent / total:6.1%} {count:5d} x {spent / count:7.1f} us  {key[:90]}")


@torch.inference_mode()
def measure(name: str, model: Any, batch: int, length: int, rate: float, profiled: bool) -> None:
    prompts = torch.randint(256, 50000, (batch, length)).tolist()
    prefill = seconds(lambda: model.generate(prompts, max_new_tokens=1))
    whole = seconds(lambda: model.generate(prompts, max_new_tokens=NEW))
    logits, state = model.prefill(prompts)
    token = logits.argmax(-1)
    step = model.stepper(state, NEW)
    taken = seconds(lambda: [step(token) for _ in range(20)]) / 20
    moved = sum(p.nbytes for p in model.parameters()) + 2 * state.nbytes()
    print(
        f"{name:7} {batch:3} x {length:5,}: prefill {batch * length / prefill:8,.0f} tokens/s, {batch / whole:6.1f} documents/s; "
        f"step {taken * 1e3:6.3f} ms, {taken / (moved / rate):.2f} times the weights and states at a copy's rate",
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
        model = MODELS[name]()
        for shape in given.shapes.split(","):
            batch, length = map(int, shape.split("x"))
            measure(name, model, batch, length, rate, given.profile)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
