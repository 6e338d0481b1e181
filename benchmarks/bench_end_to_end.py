"""A 1.3B JRT-RNN against a transformers Llama of equal size, both with random weights, end to end.

    python benchmarks/bench_end_to_end.py --data FOLDER --tokenizer FOLDER [--out FOLDER] [--stages make,direct,lm_eval,profile]

make     writes both models as local folders (bfloat16 safetensors)
direct   the models called directly: prefill and 48 tokens for a full batch of equal prompts
lm_eval  `--model jrt` against `--model hf` on a read-twice task, prompts of about the same lengths
profile  the kernels in which a prefill and a decode step of the JRT-RNN spend their time

FOLDER of --data holds based_nq_2048/validation.jsonl with documents of at least 4,000 tokens (for prompts of 8,000). The task is
jrt_nq_2048_twice, its windows about half of each length. Every figure is printed at once and kept in results.json. If a
stage or a length fails, the others go on. On one GPU or, with --shape tiny, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub, and a look-up without network waits long
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch

from jrt_eval.bench.configs import llama_config, released_config, tiny_config
from jrt_eval.bench.timing import CPU, medians, synchronize

PEAK = 989e12  # dense bfloat16 of an H100 or H200, by the datasheet
NEW = 48  # tokens that a task generates
CUDA = torch.device("cuda")
START = time.perf_counter()


def say(*words: Any) -> None:
    print(f"[{time.perf_counter() - START:6.1f}s]", *words, flush=True)


# --- the two models


def jrt_config(shape: str) -> dict[str, Any]:
    return tiny_config() if shape == "tiny" else released_config("jrt-1b")


def make(args: argparse.Namespace, results: dict[str, Any]) -> None:
    from transformers import LlamaForCausalLM

    from jrt_eval.models import from_config, save_pretrained
    from jrt_eval.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    model: Any = from_config(jrt_config(args.shape), device=args.device, dtype=args.dtype, seed=0)
    results["jrt_parameters"] = model.num_parameters()
    save_pretrained(model, args.work / "jrt", safetensors=True)
    say(f"jrt: {model.num_parameters() / 1e6:,.0f}M parameters, written")
    del model
    torch.set_default_dtype(args.dtype)
    with torch.device(args.device):
        model = LlamaForCausalLM(llama_config(args.shape))
    torch.set_default_dtype(torch.float32)
    results["hf_parameters"] = model.num_parameters()
    model.save_pretrained(args.work / "hf")
    say(f"hf: {model.num_parameters() / 1e6:,.0f}M parameters, written")
    for name in ("jrt", "hf"):
        tokenizer.save_pretrained(args.work / name)


# --- measuring


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """The median, after one call that does not count."""
    return medians({"": call}, rounds, device=CUDA if torch.cuda.is_available() else CPU)[""]


def matrix_rate() -> float:
    """What a large bfloat16 product reaches on this device, in FLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b, 9)


def flops_per_token(name: str, shape: str, parameters: int, length: int) -> float:
    """Products of a prefill: two per weight (the embedding table is only looked up), and what the mixers need."""
    if name == "hf":
        config = llama_config(shape)
        weights = parameters - config.vocab_size * config.hidden_size
        return 2 * weights + 2 * length * config.hidden_size * config.num_hidden_layers
    config = jrt_config(shape)
    weights = parameters - 50264 * config["n_embd"]
    layers, dim = len(config["alt_mixer_layers"]), config["n_embd"]
    linear = layers * (6 * 153 * dim + 2 * 64 * (dim + 16 * config["n_head"]))  # state twice, encoder once, chunks
    window = layers * 4 * (config["alt_mixer_2"]["window_size"] // 2 + 1) * dim
    return 2 * weights + linear + window


def halving(batch: int, run: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """`run(batch)`, with half the rows as often as memory does not suffice."""
    while True:
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if batch == 1:
                raise
            batch //= 2
            say(f"out of memory: {batch} rows instead")


def keep(args: argparse.Namespace, results: dict[str, Any]) -> None:
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def attempt(args: argparse.Namespace, results: dict[str, Any], what: str, call: Callable[[], None]) -> None:
    if time.perf_counter() - START > args.seconds:
        say(f"{what}: skipped, the time is up")
        results.setdefault("skipped", []).append(what)
    else:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the other figures are wanted all the same
            traceback.print_exc()
            say(f"{what}: FAILED: {type(error).__name__}: {error}")
            results.setdefault("failed", []).append(f"{what}: {type(error).__name__}: {error}")
    keep(args, results)


# --- the models' own classes


def direct(args: argparse.Namespace, results: dict[str, Any]) -> None:
    from transformers import LlamaForCausalLM

    import jrt_eval

    jrt: Any = jrt_eval.load_model(args.work / "jrt", device=args.device, backend=args.backend)
    hf: Any = LlamaForCausalLM.from_pretrained(
        args.work / "hf", trust_remote_code=False, dtype=args.dtype, attn_implementation="sdpa"
    )
    hf = hf.to(args.device).eval()
    say("both models loaded")

    def generate_jrt(ids: torch.Tensor, n: int) -> None:
        jrt.generate(ids, max_new_tokens=n)

    def generate_hf(ids: torch.Tensor, n: int) -> None:
        hf.generate(
            ids,
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
        )

    for length in args.lengths:
        for name, run in (("jrt", generate_jrt), ("hf", generate_hf)):

            def measure(batch: int, name: str = name, run: Any = run, length: int = length) -> dict[str, Any]:
                ids = torch.randint(256, 50000, (batch, length), device=args.device)
                with torch.inference_mode():
                    prefill = seconds(lambda: run(ids, 1), args.rounds)
                    whole = seconds(lambda: run(ids, NEW), args.rounds)
                read = max(length, jrt.enc_length) if name == "jrt" else length
                work = flops_per_token(name, args.shape, results[f"{name}_parameters"], length) * batch * read
                return {
                    "model": name,
                    "length": length,
                    "batch": batch,
                    "prefill_s": prefill,
                    "whole_s": whole,
                    "prefill_tokens_per_s": batch * length / prefill,
                    "mfu": work / prefill / PEAK,
                    "decode_tokens_per_s": batch * (NEW - 1) / max(whole - prefill, 1e-9),
                    "documents_per_s": batch / whole,
                }

            def point(name: str = name, length: int = length, measure: Any = measure) -> None:
                entry = halving(args.batch, measure)
                results.setdefault("direct", []).append(entry)
                say(
                    f"direct {length:,} x {entry['batch']} {name}: prefill {entry['prefill_s']:.3f} s, "
                    f"{entry['prefill_tokens_per_s']:,.0f} tokens/s, MFU {entry['mfu']:.1%}; "
                    f"decode {entry['decode_tokens_per_s']:,.0f} tokens/s; {entry['documents_per_s']:.2f} documents/s"
                )

            attempt(args, results, f"direct {length} {name}", point)


# --- through lm-eval


def through_lm_eval(args: argparse.Namespace, results: dict[str, Any]) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    import jrt_eval
    from jrt_eval.plugin import task_folder

    jrt_eval.register()
    longest = max(args.lengths) + 400  # question, cue, new tokens
    models: dict[str, Any] = {}
    for name in ("jrt", "hf"):
        extra = {"backend": args.backend} if name == "jrt" else {}
        models[name] = get_model(name)(
            pretrained=str(args.work / name), dtype=str(args.dtype).removeprefix("torch."), device=args.device,
            batch_size=args.batch, max_length=longest, **extra,
        )  # fmt: skip
        say(f"lm_eval: --model {name} loaded")

    for length in args.lengths:
        for name, lm in models.items():

            def run(
                batch: int, lm: Any = lm, name: str = name, length: int = length, documents: int = args.documents
            ) -> dict[str, Any]:
                if name == "jrt":
                    lm._batch_size = batch
                else:
                    lm.batch_size_per_gpu = batch
                spent = []
                original = type(lm).generate_until

                def timed(*a: Any, **k: Any) -> Any:
                    synchronize(CUDA if torch.cuda.is_available() else CPU)
                    start = time.perf_counter()
                    answer = original(lm, *a, **k)
                    synchronize(CUDA if torch.cuda.is_available() else CPU)
                    spent.append((time.perf_counter() - start, len(answer)))
                    return answer

                lm.generate_until = timed
                start = time.perf_counter()
                out = simple_evaluate(
                    model=lm,
                    tasks=["jrt_nq_2048_twice"],
                    limit=documents,
                    batch_size=batch,
                    task_manager=TaskManager(
                        include_path=str(task_folder()),
                        include_defaults=False,  # lm-eval's own thousands take seconds to list
                        metadata={
                            "data_dir": str(args.data),
                            "tokenizer": str(args.work / "jrt"),
                            "context_length": length // 2 + 25,  # the window leaves 50 tokens for the answer
                            "max_length": longest,
                        },
                    ),
                    bootstrap_iters=0,
                    log_samples=True,
                )
                whole = time.perf_counter() - start
                samples = out["samples"]["jrt_nq_2048_twice"]
                tokens = [sample["doc"].get("jrt_prompt_tokens") or 0 for sample in samples]
                return {
                    "model": name,
                    "length": length,
                    "batch": batch,
                    "documents": spent[-1][1],
                    "prompt_tokens": statistics.mean(tokens),
                    "generate_s": spent[-1][0],
                    "evaluate_s": whole,
                    "documents_per_s": spent[-1][1] / spent[-1][0],
                }

            def point(name: str = name, length: int = length, run: Any = run) -> None:
                if length == args.lengths[0]:
                    run(args.batch, documents=args.batch)  # libraries and kernels are loaded, and the step is recorded
                entry = halving(args.batch, run)
                results.setdefault("lm_eval", []).append(entry)
                say(
                    f"lm_eval {length:,} (prompts of {entry['prompt_tokens']:,.0f} tokens on average) x {entry['batch']} "
                    f"{name}: {entry['documents']} documents in {entry['generate_s']:.2f} s, "
                    f"{entry['documents_per_s']:.2f} documents/s"
                )

            attempt(args, results, f"lm_eval {length} {name}", point)


# --- where the time goes


def time_by_kernel(call: Callable[[], object], device: torch.device) -> list[tuple[str, float, int]]:
    """(name, microseconds, launches) of each kernel of one call, or of each operator on a CPU; the costliest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = device.type == "cuda"
    with profiler(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        call()
        synchronize(device)
    cost = [
        (e.key, float(e.self_device_time_total if cuda else e.self_cpu_time_total), e.count)
        for e in seen.key_averages()
    ]
    return sorted(cost, key=lambda item: -item[1])


def profile(args: argparse.Namespace, results: dict[str, Any]) -> None:
    import jrt_eval

    model: Any = jrt_eval.load_model(args.work / "jrt", device=args.device, backend=args.backend)
    model.cuda_graphs = False
    length = min(2000, max(args.lengths))
    prompts = torch.randint(256, 50000, (args.batch, length)).tolist()
    with torch.inference_mode():
        logits, state = model.prefill(prompts)
        token = logits.argmax(-1)
        model.step(token, state)
        for what, call in (
            (f"prefill {length}", lambda: model.prefill(prompts)),
            ("step", lambda: model.step(token, state)),
        ):
            cost = time_by_kernel(call, torch.device(args.device))
            total = sum(spent for _, spent, _ in cost)
            say(f"profile of {what} x {args.batch}: {total / 1e3:.2f} ms in {sum(n for _, _, n in cost)} kernels")
            top = cost[:25]
            results[f"profile {what}"] = [(key[:120], spent, count) for key, spent, count in top]
            for key, spent, count in top:
                print(f"    {spent / 1e3:9.3f} ms {spent / total:6.1%} {count:5d}x  {key[:100]}", flush=True)


# --- the tables


def table(results: dict[str, Any]) -> str:
    lines = []
    for stage in ("direct", "lm_eval"):
        entries = results.get(stage)
        if not entries:
            continue
        by = {(entry["length"], entry["model"]): entry for entry in entries}
        lengths = sorted({entry["length"] for entry in entries})
        if stage == "direct":
            lines.append(
                "\n| direct: prompt | prefill tokens/s, jrt | hf | ratio | MFU jrt | hf | decode tokens/s, jrt | hf | ratio | documents/s, jrt | hf | ratio |"
            )
        else:
            lines.append("\n| lm_eval: prompt | documents/s, jrt | hf | ratio |")
        lines.append("|" + " --- |" * (lines[-1].count("|") - 1))
        for length in lengths:
            pair = [by.get((length, name), {}) for name in ("jrt", "hf")]
            cells = []
            for key, form in (
                ("prefill_tokens_per_s", "{:,.0f}"),
                ("mfu", "{:.1%}"),
                ("decode_tokens_per_s", "{:,.0f}"),
                ("documents_per_s", "{:.2f}"),
            ):
                if stage == "lm_eval" and key != "documents_per_s":
                    continue
                values = [entry.get(key) for entry in pair]
                cells += ["" if value is None else form.format(value) for value in values]
                if key != "mfu":
                    cells.append(f"{values[0] / values[1]:.2f}x" if all(values) else "")
            lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


STAGES = {"make": make, "direct": direct, "lm_eval": through_lm_eval, "profile": profile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a folder, such as GPT-2's vocab.json and merges.txt"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument(
        "--work", type=Path, help="where the models are written, and found by later runs; --out by default"
    )
    parser.add_argument("--stages", default="make,lm_eval,direct", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--lengths", default="512,1000,2000,4000,8000")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3600, help="no new figure is begun after this many")
    parser.add_argument("--shape", choices=["1b", "tiny"], default="1b")
    parser.add_argument("--backend", default="auto", help="of jrt_eval's kernels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.lengths = [int(n) for n in args.lengths.split(",")]
    args.work = args.work or args.out
    args.dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    if args.device == "cpu" and args.shape != "tiny":
        parser.error("without a GPU only --shape tiny ends today")
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level="INFO", format="          %(name)s: %(message)s", stream=sys.stdout)
    for noisy in ("httpx", "datasets", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel("WARNING")
    file = args.out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    results |= {"torch": torch.__version__, "shape": args.shape, "batch": args.batch}
    if args.device.startswith("cuda"):
        results["device"] = torch.cuda.get_device_name()
        results["bf16_product_tflops"] = matrix_rate() / 1e12
        say(f"{results['device']}: a bfloat16 product runs at {results['bf16_product_tflops']:.0f} TFLOP/s")
    for stage in args.stages.split(","):
        say(f"--- {stage}")
        attempt(args, results, stage, lambda stage=stage: STAGES[stage](args, results))  # type: ignore[misc]
    text = table(results)
    print(text, flush=True)
    (args.out / "results.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
