"""Mamba's and Mamba-2's operators on a GPU, and whole models on a CPU.

    python benchmarks/bench_recurrences.py gpu [--tune]     selective_scan, ssd and short_conv at 32 x 2,048 and 1 x 2,048, bfloat16
    python benchmarks/bench_recurrences.py cpu [--lengths 1000,8000,32000]     130M shapes, float32, random weights

`gpu` prints milliseconds, the bytes that must be moved per second next to the rate of a copy, the error against the reference, and
mamba_ssm's kernels where it is installed; --tune prints the ssd kernel's variants. `cpu` prints prefill and decode step in units of the
model's own linear layers, the time per token by length, two threads against one, and transformers' classes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.bench.timing import medians

CHANNELS, STATES = 4096, 16  # Mamba 1.4B
HEADS, HEAD_DIM, STATES2 = 64, 64, 128  # Mamba-2 1.3B


def scan_arguments(
    batch: int, length: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    both, projected = normal(batch, length, 2 * CHANNELS), normal(batch, length, 128 + 2 * STATES)
    return {
        "x": normal(batch, length, CHANNELS),
        "dt": normal(batch, length, CHANNELS) * 0.5,
        "a": -torch.arange(1.0, STATES + 1, device=device).repeat(CHANNELS, 1),
        "b": projected[..., 128 : 128 + STATES],
        "c": projected[..., 128 + STATES :],
        "d": torch.ones(CHANNELS, device=device),
        "z": both[..., CHANNELS:],
        "dt_bias": torch.randn(CHANNELS, device=device) - 4,
        "softplus": True,
    }


def ssd_arguments(batch: int, length: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    inner = HEADS * HEAD_DIM
    mixed = torch.randn(batch, length, inner + 2 * STATES2 + HEADS, device=device, dtype=dtype)
    x, b, c, dt = mixed.split([inner, STATES2, STATES2, HEADS], -1)
    return {
        "x": x.unflatten(-1, (HEADS, HEAD_DIM)),
        "dt": dt * 0.5,
        "a": -torch.rand(HEADS, device=device) * 15 - 1,
        "b": b.unsqueeze(2),
        "c": c.unsqueeze(2),
        "d": torch.ones(HEADS, device=device),
        "dt_bias": torch.randn(HEADS, device=device) - 4,
        "softplus": True,
    }


def copy_rate() -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / milliseconds({"copy": lambda: target.copy_(source)})["copy"] * 1e3


def milliseconds(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians, by the GPU's own clock over several calls in a row."""

    def measured(run: Callable[[], object]) -> float:
        run()
        times = []
        for _ in range(7):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(5):
                run()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 5)
        return statistics.median(times)

    return {name: measured(run) for name, run in candidates.items()}


def scan_bytes(batch: int, length: int) -> int:
    """x, dt, z and y once each, B and C once, and the final state."""
    return batch * length * (4 * CHANNELS + 2 * STATES) * 2 + batch * CHANNELS * STATES * 4


def ssd_bytes(batch: int, length: int) -> int:
    tokens = batch * length
    return tokens * (2 * HEADS * HEAD_DIM + 2 * STATES2 + HEADS) * 2 + batch * HEADS * HEAD_DIM * STATES2 * 4


def mamba_ssm_forms(scan: dict[str, Any], ssd: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """mamba_ssm's kernels on the same inputs, where it is installed."""
    forms: dict[str, Callable[[], object]] = {}
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u, delta, z, b, c = (scan[k].transpose(1, 2).contiguous() for k in ("x", "dt", "z", "b", "c"))
        forms["selective_scan, mamba_ssm"] = lambda: selective_scan_fn(
            u, delta, scan["a"], b, c, scan["d"], z, scan["dt_bias"], delta_softplus=True, return_last_state=True
        )
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        forms["ssd, mamba_ssm"] = lambda: mamba_chunk_scan_combined(
            ssd["x"], ssd["dt"], ssd["a"], ssd["b"], ssd["c"], 256, D=ssd["d"], dt_bias=ssd["dt_bias"], dt_softplus=True,
            return_final_states=True,
        )  # fmt: skip
    except ImportError as error:
        print(f"mamba_ssm: not measured ({error})")
    return forms


def gpu_errors() -> None:
    """Relative errors in norm of outputs and final states against the reference in float32."""
    for name, make in (("selective_scan", scan_arguments), ("ssd", ssd_arguments)):
        inputs = make(2, 300)
        wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        lengths = torch.tensor([300, 131], device="cuda")
        run = getattr(kernels, name)
        got, want = run(**inputs, lengths=lengths, backend="triton"), run(**wide, lengths=lengths, backend="torch")
        gaps = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True)]
        single = run(**wide, lengths=lengths, backend="triton")
        gaps += [float((a - b).norm() / b.norm()) for a, b in zip(single, want, strict=True)]
        print(
            f"{name}: error of y {gaps[0]:.1e}, of the state {gaps[1]:.1e} (bfloat16); {gaps[2]:.1e}, {gaps[3]:.1e} (float32)"
        )


def gpu(tune: bool) -> None:
    torch.manual_seed(0)
    gpu_errors()
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy moves {rate / 1e9:,.0f} GB/s")
    for batch, length in ((32, 2048), (1, 2048)):
        scan, ssd = scan_arguments(batch, length), ssd_arguments(batch, length)
        weight, bias = (
            torch.randn(CHANNELS, 1, 4, device="cuda", dtype=torch.bfloat16),
            torch.randn(CHANNELS, device="cuda"),
        )
        gate = torch.randn_like(ssd["x"])
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kernels.selective_scan(**scan)
        extra = torch.cuda.max_memory_allocated() - before
        print(
            f"\n{batch} x {length:,}: selective_scan takes {extra / 2**20:,.0f} MiB beyond its inputs, its output included"
        )
        forms: dict[str, Callable[[], object]] = {
            "selective_scan": partial(kernels.selective_scan, **scan),
            "ssd": partial(kernels.ssd, **ssd),
            "ssd, gated": partial(kernels.ssd, **ssd, z=gate),
            "short_conv": partial(kernels.short_conv, scan["x"], weight, bias),
        }
        found = milliseconds(forms | mamba_ssm_forms(scan, ssd))
        sizes = {"selective_scan": scan_bytes(batch, length), "ssd": ssd_bytes(batch, length)}
        sizes["ssd, gated"] = sizes["ssd"] + gate.nbytes
        sizes["short_conv"] = 2 * batch * length * CHANNELS * 2
        for name, ms in found.items():
            moved = sizes[name.removesuffix(", mamba_ssm")] / ms * 1e3
            print(f"  {name:28} {ms:8.3f} ms  {moved / 1e9:7,.0f} GB/s  {moved / rate:5.0%} of a copy")
        decode(batch)
        if tune:
            variants(ssd)


def decode(batch: int) -> None:
    """A decode step replayed from a CUDA graph, as models run it."""
    scan, ssd = scan_arguments(batch, 1), ssd_arguments(batch, 1)
    step1 = {k: v[:, 0] if isinstance(v, Tensor) and k in ("x", "dt", "b", "c", "z") else v for k, v in scan.items()}
    step2 = {k: v[:, 0] if isinstance(v, Tensor) and k in ("x", "dt", "b", "c") else v for k, v in ssd.items()}
    state1 = torch.zeros(batch, CHANNELS, STATES, device="cuda")
    state2 = torch.zeros(batch, HEADS, HEAD_DIM, STATES2, device="cuda")
    steps: dict[str, Callable[[], object]] = {
        "selective_scan_step": lambda: kernels.selective_scan_step(**step1, state=state1),
        "ssd_step": lambda: kernels.ssd_step(**step2, state=state2),
    }
    for name, run in steps.items():
        from jrt_eval.models.recurrent.graphs import record

        moved = 2 * (state1 if name.startswith("selective") else state2).nbytes
        ms = milliseconds({name: record(run)})[name]
        print(f"  {name:28} {ms:8.4f} ms  {moved / ms / 1e6:7,.0f} GB/s of the state")


def variants(ssd: dict[str, Any]) -> None:
    from jrt_eval.kernels.ssd import triton as module

    kept = module.CHUNK, module.WARPS, module.STAGES
    for chunk in (16, 32, 64):
        for warps in (4, 8):
            for stages in (1, 2, 3, 4):
                module.CHUNK, module.WARPS, module.STAGES = chunk, warps, stages
                try:
                    ms = milliseconds({"ssd": lambda: kernels.ssd(**ssd)})["ssd"]
                    print(f"    ssd with chunks of {chunk}, {warps} warps, {stages} stages: {ms:.3f} ms")
                except Exception as error:  # noqa: BLE001 - Triton has many: out of shared memory, of registers
                    print(f"    ssd with chunks of {chunk}, {warps} warps, {stages} stages: {type(error).__name__}")
    module.CHUNK, module.WARPS, module.STAGES = kept


# --- CPU


def models(version: int, layers: int) -> tuple[Any, Any]:
    """Our model and transformers' of the 130M shapes, with the same random weights."""
    import transformers

    from jrt_eval.models.recurrent.mamba import MambaModel, read_transformers

    torch.manual_seed(0)
    common = {"vocab_size": 50288, "hidden_size": 768, "num_hidden_layers": layers, "tie_word_embeddings": True}
    if version == 1:
        theirs: Any = transformers.MambaForCausalLM(transformers.MambaConfig(**common))
    else:
        config = transformers.Mamba2Config(**common, num_heads=24, head_dim=64, state_size=128, n_groups=1)
        theirs = transformers.Mamba2ForCausalLM(config)
    raw = theirs.config.to_dict()
    mine = MambaModel(read_transformers(raw), raw)
    mine.load_state_dict({k.replace("embeddings.", "embedding."): v for k, v in theirs.state_dict().items()})
    mine.tie_weights()
    return mine.eval(), theirs.eval()


def linear_layers(model: Any, rows: int) -> Callable[[], object]:
    """The products of all linear layers of the layers on that many rows, as the model calls them."""
    layers = [m for name, m in model.backbone.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]
    inputs = {m.in_features: torch.randn(rows, m.in_features) for m in layers}
    return lambda: [m(inputs[m.in_features]) for m in layers]


def _both(one: Callable[[], object], other: Callable[[], object]) -> None:
    one()
    other()


@torch.inference_mode()
def cpu(lengths: list[int], product: str, layers: int, clock: str) -> None:
    from jrt_eval.kernels import linear

    threads, tick = torch.get_num_threads(), time.process_time if clock == "cpu" else time.perf_counter
    for version in (1, 2):
        mine, theirs = models(version, layers)
        linear.use_fastest(mine, product)
        print(
            f"\nMamba{'-2' if version == 2 else ''} 130M, {layers} layers, float32, {kernels.status().text}, "
            f"linear layers: {product}, {clock} time",
            flush=True,
        )
        ids = torch.randint(0, 50000, (1, 1000))
        _, state = mine.hidden(ids)
        cache = theirs(ids[:, :64], use_cache=True).cache
        projections, row = linear_layers(mine, 1), torch.zeros(1, 768)
        compare(
            {
                "linear layers, 1,000 rows": linear_layers(mine, 1000),
                "prefill of 1,000 tokens": partial(mine.hidden, ids),
                "prefill, transformers": partial(theirs.backbone, ids, use_cache=False),
            },
            5,
            tick,
        )
        compare(
            {
                "linear layers and head, 1 row": partial(_both, projections, partial(mine.lm_head, row)),
                "decode step": partial(mine.step, ids[0, :1], state),
                "decode step, transformers": partial(theirs, ids[:, :1], cache=cache, use_cache=True),
            },
            15,
            tick,
        )
        for length in lengths:
            ids = torch.randint(0, 50000, (1, length))
            start = tick()
            mine.hidden(ids)
            print(f"  {length:6,} tokens: {(tick() - start) / length * 1e6:7.1f} us per token", flush=True)
        if threads > 1 and clock == "wall":
            print(f"  {threads} threads: {_speed_up(mine, threads):.2f} times as fast as one", flush=True)


def compare(forms: dict[str, Callable[[], object]], rounds: int, tick: Callable[[], float]) -> None:
    """Print medians of calls in turn, in units of the first form."""
    found = medians(forms, rounds, tick)
    first = next(iter(found.values()))
    for name, seconds in found.items():
        print(f"  {name:32} {seconds * 1e3:9.2f} ms   {seconds / first:5.2f} times the linear layers", flush=True)


def _speed_up(model: Any, threads: int) -> float:
    ids = torch.randint(0, 50000, (1, 1000))
    ratios = []
    for _ in range(5):
        seconds = []
        for count in (1, threads):
            torch.set_num_threads(count)
            start = time.perf_counter()
            model.hidden(ids)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=["gpu", "cpu"])
    parser.add_argument("--tune", action="store_true", help="time variants of the ssd kernel")
    parser.add_argument("--lengths", default="1000,4000,16000,32000", help="prompts whose time per token is printed")
    parser.add_argument(
        "--linear", default="torch", choices=["torch", "auto", "packed"], help="the product of linear layers"
    )
    parser.add_argument("--layers", type=int, default=24, help="fewer to measure faster: all shares are per layer")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: the process's own time, for a machine that others use",
    )
    given = parser.parse_args()
    if given.device == "gpu":
        if not torch.cuda.is_available():
            parser.error("PyTorch sees no GPU")
        gpu(given.tune)
    else:
        cpu([int(n) for n in given.lengths.split(",")], given.linear, given.layers, given.clock)


if __name__ == "__main__":
    main()
