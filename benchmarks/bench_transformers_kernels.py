"""Our kernels in transformers' recurrent classes against plain transformers: prefill and decoding, in turn in one process.

    python benchmarks/bench_transformers_kernels.py [--models falcon_h1,jamba,qwen3_next,nemotron_h] [--device cuda]
                                                    [--dtype bfloat16] [--rows 1] [--tokens 1000] [--new 32] [--rounds 3]
                                                    [--clock process --threads 1]

The models have about 100M parameters and random weights. Each figure is a median over the rounds; the ratio is plain
transformers' time over ours. "hf" is the class as transformers computes it here: with the packages that it finds, else in
PyTorch. "kernels" is the same module with our kernels, and the last line lists who computes each function. "jrt" is
what `--model jrt` evaluates: on a CPU with our attention and linear layers (`cpu_linear=auto`) as well, on a GPU with CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from jrt_eval.bench.timing import medians
from jrt_eval.kernels import linear
from jrt_eval.models import cpu_inference
from jrt_eval.models.batching import Batching
from jrt_eval.models.transformers import TransformersModel

_COMMON = {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
_ATTENTION = {"num_attention_heads": 12, "num_key_value_heads": 4}

# Sizes of the released models' layers, scaled down to a width of 768.
CONFIGS: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 64, "mamba_d_ssm": 768, "mamba_n_heads": 24, "mamba_d_head": 32, "mamba_d_state": 64, "mamba_n_groups": 1,
    },
    "jamba": dict(
        hidden_size=768, intermediate_size=1536, num_hidden_layers=8, attn_layer_period=8, attn_layer_offset=4,
        expert_layer_period=2, expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=16, **_ATTENTION,
    ),
    "qwen3_next": dict(
        hidden_size=768, intermediate_size=1536, num_hidden_layers=8, head_dim=64, linear_num_key_heads=4,
        linear_num_value_heads=8, linear_key_head_dim=128, linear_value_head_dim=128, moe_intermediate_size=256,
        shared_expert_intermediate_size=256, num_experts=8, num_experts_per_tok=2, **_ATTENTION,
    ),
    "nemotron_h": dict(
        hidden_size=768, intermediate_size=3072, head_dim=64, ssm_state_size=128, mamba_num_heads=24, mamba_head_dim=64,
        n_groups=8, chunk_size=256,
        layers_block_type=(["linear_attention", "mlp"] * 3 + ["full_attention", "mlp"]) * 2, **_ATTENTION,
    ),
}  # fmt: skip


def build(name: str, device: str, dtype: torch.dtype) -> Any:
    """A transformers model of random weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**_COMMON, **CONFIGS[name])
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()


def sides(name: str, args: argparse.Namespace) -> dict[str, TransformersModel]:
    """The same weights by plain transformers and with our kernels."""
    batching = Batching("padded", "padded", "not measured")
    dtype = getattr(torch, args.dtype)
    inner = build(name, args.device, dtype)
    models = {
        "hf": TransformersModel(inner, batching=batching, backend="torch", cuda_graphs=False),
        "kernels": TransformersModel(inner, batching=batching, cuda_graphs=False),
    }
    if args.device == "cpu":
        inner = build(name, args.device, dtype)
        cpu_inference.prepare(inner)
    models["jrt"] = TransformersModel(inner, batching=batching)
    linear.use_fastest(models["jrt"], "auto" if args.device == "cpu" else "torch")
    return models


@torch.inference_mode()
def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    models = sides(name, args)
    inner = models["hf"].inner
    ids = torch.randint(3, 32000, (args.rows, args.tokens), device=args.device)
    prompts = ids[:, :16].tolist()

    def prefill(model: TransformersModel) -> None:
        model(ids, logits_to_keep=1)

    def decode(model: TransformersModel) -> None:
        model.continue_prompts(prompts, args.new, sampling={}, stop_ids=[])

    clock = process_time if args.clock == "process" else perf_counter
    result: dict[str, Any] = {"parameters": inner.num_parameters(), "kernels": models["kernels"].kernels}
    logits = {side: model(ids, logits_to_keep=1).logits.float() for side, model in models.items()}
    worst = max(float((x - logits["hf"]).abs().max()) for x in logits.values())
    print(
        f"{name}: {result['parameters'] / 1e6:.0f}M parameters, logits differ by {worst:.1e} from hf's, whose deviation is "
        f"{float(logits['hf'].std()):.2f}"
    )
    for what, run, tokens in (("prefill", prefill, args.tokens), ("decode", decode, args.new)):
        calls = {side: (lambda m=m, run=run: run(m)) for side, m in models.items()}
        seconds = medians(calls, args.rounds, clock, torch.device(args.device))
        result[what] = {
            side: {"tokens_per_second": args.rows * tokens / s, "ratio": seconds["hf"] / s}
            for side, s in seconds.items()
        }
        row = ", ".join(
            f"{side} {x['tokens_per_second']:.0f} tokens/s ({x['ratio']:.2f}x)" for side, x in result[what].items()
        )
        print(f"{name:12} {what:8} {row}", flush=True)
    print("    " + ", ".join(f"{function}: {by}" for function, by in result["kernels"].items()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CONFIGS), help="which models, separated by commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, default=1, help="prompts in a batch")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate after 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "process"], default="wall", help="process: with --threads 1")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    where = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}, {args.dtype}, {args.rows} x {args.tokens} tokens, {args.new} new", flush=True)
    results = {name: measure(name, args) for name in args.models.split(",")}
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
