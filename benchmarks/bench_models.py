"""Speed of the models against transformers' Llama of the same size, decoding at two contexts, shared contexts, loading.

    python benchmarks/bench_models.py [prefill] [decode] [share] [load]

Random weights, the released shapes, medians of interleaved repetitions in one process; threads as OMP_NUM_THREADS says.
`load` writes a 1.3B checkpoint (5.4 GB) to a temporary folder and loads it in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jrt_eval.models import from_config, save_pretrained

PACKAGE = "based.models.mixers."


def shape(family: str, size: str = "360m") -> dict[str, Any]:
    """The config of a released checkpoint."""
    big = size == "1b"
    layers = [1, 6, 11, 16, 21, 27, 33] if big else [1, 6, 11, 16, 21]
    config: dict[str, Any] = {
        "vocab_size": 50257, "n_positions": 0, "max_position_embeddings": 0, "activation_function": "swiglu",
        "rms_norm": True, "residual_in_fp32": True, "tie_word_embeddings": True, "special_initializer": True,
        "mlp_fc1_bias": False, "mlp_fc2_bias": False, "out_proj_bias": False, "qkv_proj_bias": False,
        "pad_vocab_size_multiple": 8, "n_head": 16, "n_embd": 1792 if big else 1024,
    }  # fmt: skip
    if family == "attn":
        return config | {"n_layer": 24, "rotary_emb_fraction": 0.5, "pad_vocab_size_multiple": 16}
    linear: dict[str, Any] = {"_target_": PACKAGE + "linear_attention.LinearAttention"}
    if family == "jrt":
        linear = {"_target_": PACKAGE + "prefix_linear_attention.PrefixLinearAttention", "enc_length": 1024}
    return config | {
        "n_layer": 36 if big else 26 if family == "jrt" else 27,
        "n_inner": 3584 if big else 2048,
        "rotary_emb_fraction": 1,
        "mixer": {"_target_": PACKAGE + "convolution.BaseConv", "expand_proj": 4},
        "alt_mixer": linear | {"feature_dim": 16, "num_heads": 16},
        "alt_mixer_layers": layers,
        "alt_mixer_2": {"_target_": PACKAGE + "slide_attention.SlidingAttention", "window_size": 256, "num_heads": 16},
        "alt_mixer_2_layers": [i + 1 for i in layers],
    }


def llama() -> Any:
    """transformers' Llama with the shapes of attn-360M, as lm-eval's hf backend runs it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50272,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        tie_word_embeddings=True,
        max_position_embeddings=16384,
    )
    return LlamaForCausalLM(config).eval()


def medians(
    runs: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each, the runs taking turns so that other load hits all of them.

    clock: `time.process_time` counts this process's own work, which says more on a machine that others use too.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, model: str, *figures: str) -> None:
    """One line of the Markdown table."""
    print(f"| {what} | {model} | " + " | ".join(figures) + " |", flush=True)


def prefill(families: list[str], length: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Tokens per second of reading a prompt, logits of its last token alone."""
    ids = torch.randint(0, 50257, (1, length))
    readers: dict[str, Callable[[torch.Tensor], Any]] = {}
    hf = llama()
    base = f"transformers Llama, {hf.num_parameters() / 1e6:.0f}M"
    readers[base] = lambda ids: hf(ids, use_cache=True, logits_to_keep=1)
    for family in families:
        model = from_config(shape(family), seed=0).eval()
        readers[f"{family}, {model.num_parameters() / 1e6:.0f}M"] = lambda ids, model=model: model.prefill(ids.tolist())
    with torch.inference_mode():
        medians({name: partial(read, ids[:, :64]) for name, read in readers.items()}, 1)  # warm up
        result = medians({name: partial(read, ids) for name, read in readers.items()}, repetitions, clock)
    for name, seconds in result.items():
        row(
            f"prefill of {length:,} tokens", name, f"{length / seconds:,.0f} tokens/s", f"{result[base] / seconds:.2f}x"
        )


def decode(families: list[str], contexts: list[int], tokens: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Milliseconds per token after contexts of different lengths."""
    for family in families:
        model = from_config(shape(family), seed=0).eval()
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
            medians({str(context): run for context, run in runs.items()}, 1)  # warm up
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
    """Scoring several continuations of one context, which is read once, against scoring each by itself."""
    context, answers = torch.randint(0, 50257, (length,)).tolist(), torch.randint(0, 50257, (choices, 4)).tolist()
    for family in families:
        model = from_config(shape(family), seed=0).eval()

        def together(model: Any = model) -> None:
            model.score([context] * choices, answers)

        def alone(model: Any = model) -> None:
            for answer in answers:
                model.score([context], [answer])

        with torch.inference_mode():
            model.score([context[:64]], answers[:1])  # warm up
            result = medians({"each by itself": alone, "together": together}, repetitions, clock)
        for name, seconds in result.items():
            row(
                f"{choices} continuations of one {length:,}-token context, {name}",
                family,
                f"{seconds:.2f} s",
                f"{result['each by itself'] / seconds:.2f}x",
            )


def load() -> None:
    """Peak memory and time of loading a 1.3B checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(from_config(shape("jrt", "1b"), seed=0), folder)
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
    parser.add_argument("--cpu-time", action="store_true", help="count this process's own seconds, not the clock's")
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
