"""`--model jrt` against `--model hf` on a CPU, through lm-eval's own calls: scoring and generation, in turn in one process.

    python benchmarks/bench_cpu_models.py [--shapes llama-135m,mamba-360m,...] [--folder SmolLM2] [--rounds 3] [--threads 2]
                                          [--clock wall|process] [--tokens 400] [--new 48] [--rows 8] [--out results.json]

Weights are random, unless --folder names a checkpoint; speed does not depend on them. Each column is a median over the
rounds, and the ratio is hf's time over ours. JRT-RNN and Based, which transformers does not know, are compared with
themselves at cpu_linear=torch. `--clock process` counts processor time, which other load on the machine disturbs less; use it
with --threads 1. The last line of each model is the time that reading its weights once takes on this machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from jrt_eval import minis
from jrt_eval.bench.configs import released_config
from jrt_eval.bench.timing import Copy, medians
from jrt_eval.kernels import linear
from jrt_eval.models import from_config, load_model, save_pretrained
from jrt_eval.models.tokenizers import load_tokenizer

OURS = ("jrt-360m", "based-360m")


def transformers_config(shape: str) -> Any:
    from transformers import FalconH1Config, LlamaConfig, MambaConfig

    llama = {"vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    if shape == "llama-135m":
        return LlamaConfig(**llama, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                           num_key_value_heads=3)  # fmt: skip
    if shape == "llama-360m":
        return LlamaConfig(**llama, hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
                           num_key_value_heads=5)  # fmt: skip
    if shape == "mamba-360m":
        return MambaConfig(vocab_size=50280, hidden_size=1024, num_hidden_layers=48)
    if shape == "falcon-h1-100m":
        return FalconH1Config(
            vocab_size=32768, hidden_size=768, intermediate_size=768, num_hidden_layers=24, num_attention_heads=8,
            num_key_value_heads=2, head_dim=64, mamba_d_ssm=768, mamba_n_heads=24, mamba_d_head=32, mamba_d_state=64,
            mamba_n_groups=1, tie_word_embeddings=True,
        )  # fmt: skip
    raise SystemExit(f"no shape {shape}: {', '.join(SHAPES)}")


SHAPES = ("llama-135m", "llama-360m", "mamba-360m", "falcon-h1-100m", *OURS)


def save(shape: str, folder: Path) -> None:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    if shape in OURS:
        save_pretrained(from_config(released_config(shape), seed=0), folder, safetensors=True)
        return
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(transformers_config(shape)).save_pretrained(folder)


def sides(folder: Path, tokenizer: Any, ours: bool, args: argparse.Namespace) -> dict[str, Any]:
    """The language models to compare, the first being ours."""

    def jrt(**more: Any) -> JRTLM:
        model = load_model(folder, device="cpu", **more)
        return JRTLM(pretrained=model, tokenizer=tokenizer, batch_size=args.rows, max_length=args.tokens + args.new + 8)

    models: dict[str, Any] = {
        "jrt float32": jrt(dtype="float32", cpu_linear="auto"),
        "jrt bfloat16": jrt(dtype="bfloat16", cpu_linear="auto"),
    }
    if ours:
        models["jrt float32, torch"] = jrt(dtype="float32")
    else:
        from transformers import AutoModelForCausalLM

        inner = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
        models["hf float32"] = HFLM(pretrained=inner, tokenizer=tokenizer, batch_size=args.rows, backend="causal")
    return models


def requests(tokenizer: Any, args: argparse.Namespace) -> tuple[list[Instance], list[Instance]]:
    """Scoring and generation of `rows` prompts of about `tokens` tokens, which differ in length by a few."""
    piece = " The quick brown fox jumps over the lazy dog near the river bank."
    each = len(tokenizer.encode(piece))
    texts = [f"{row}" + piece * max(1, args.tokens // each - row % 3) for row in range(args.rows)]
    arguments = {"until": ["\x00"], "max_gen_toks": args.new, "do_sample": False}
    score = [Instance("loglikelihood", {}, (text, " a short answer"), i) for i, text in enumerate(texts)]
    generate = [Instance("generate_until", {}, (text, arguments), i) for i, text in enumerate(texts)]
    return score, generate


def measure(shape: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    own = folder if (folder / "tokenizer.json").is_file() else minis.find("mini-attn")
    tokenizer = load_tokenizer(str(own))
    models = sides(folder, tokenizer, shape in OURS, args)
    score, generate = requests(tokenizer, args)
    clock = process_time if args.clock == "process" else perf_counter
    result: dict[str, Any] = {"shape": shape, "products": linear.products(models["jrt float32"].model)}
    base = "jrt float32, torch" if shape in OURS else "hf float32"
    for what, run in (
        ("scoring", lambda lm: lm.loglikelihood(score, disable_tqdm=True)),
        ("generation", lambda lm: lm.generate_until(generate, disable_tqdm=True)),
    ):
        calls = {name: (lambda lm=lm, run=run: run(lm)) for name, lm in models.items()}
        seconds = medians(calls, args.rounds, clock)
        result[what] = {name: {"seconds": s, "ratio": seconds[base] / s} for name, s in seconds.items()}
        row = ", ".join(f"{name} {s:.2f} s ({seconds[base] / s:.2f}x)" for name, s in seconds.items())
        print(f"{shape:15} {what:10} {row}", flush=True)
    copy = Copy(torch.device("cpu"), 1 << 28)
    bandwidth = copy.bytes / medians({"copy": copy}, 5)["copy"]
    weights = 4 * models["jrt float32"].model.num_parameters()
    result["weights once"] = weights / bandwidth
    print(f"{shape:15} weights once {1e3 * weights / bandwidth:.1f} ms in float32 ({bandwidth / 1e9:.1f} GB/s of a copy); "
          f"linear layers: {result['products']}", flush=True)  # fmt: skip
    return result


@torch.inference_mode()
def rounding(folder: Path, tokens: int = 300) -> None:
    """Differences of logits from float64, over random tokens: of PyTorch's products and of oneDNN's."""
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    exact = load_model(folder, device="cpu", dtype="float32").double()(ids).logits  # type: ignore[attr-defined]
    print(
        f"{folder.name:15} logits of {tokens} random tokens have standard deviation {exact.std():.2f}; from float64 differ",
        flush=True,
    )
    for dtype, setting in (("float32", "torch"), ("float32", "packed"), ("bfloat16", "packed")):
        logits = load_model(folder, device="cpu", dtype=dtype, cpu_linear=setting)(ids).logits
        error = logits.double() - exact
        print(
            f"{'':15} {dtype} {setting}: {error.square().mean().sqrt():.1e} in root mean square, {error.abs().max():.1e} at most",
            flush=True,
        )


def products() -> None:
    """The measured times of linear layers on one thread."""
    for shape, times in linear.cached_times().items():
        row = ", ".join(f"{name} {' '.join(f'{1e6 * t:.0f}' for t in each)}" for name, each in times.items())
        print(
            f"{shape}: microseconds for {', '.join(map(str, linear.selection.ROWS))} tokens: {row} -> {linear.fastest(times)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which models, separated by commas")
    parser.add_argument("--folder", type=Path, help="a transformers checkpoint to measure instead of random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--tokens", type=int, default=400, help="tokens of a prompt, about")
    parser.add_argument("--new", type=int, default=48, help="tokens to generate")
    parser.add_argument("--rows", type=int, default=8, help="prompts, all in one batch")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--rounding", action="store_true", help="with --folder: only differences of logits from float64"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    print(
        f"{linear.selection.machine()}, {args.threads} threads, {args.clock} time, {args.rows} prompts of {args.tokens} tokens"
    )
    if args.rounding:
        if args.folder is None:
            parser.error("--rounding needs --folder")
        rounding(args.folder)
        return
    results = []
    for shape in [args.folder.name] if args.folder else args.shapes.split(","):
        if args.folder:
            results.append(measure(shape, args.folder, args))
        else:
            with tempfile.TemporaryDirectory() as folder:
                save(shape, Path(folder))
                results.append(measure(shape, Path(folder), args))
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    products()


if __name__ == "__main__":
    main()
