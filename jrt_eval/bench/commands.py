"""Runs the benchmarks of `jrt-eval bench`, prints their tables, and writes JSON, CSV and plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from jrt_eval.bench import alternatives, cuda, cuda_forms, kernels, model, plots, recurrences
from jrt_eval.bench.configs import released_config
from jrt_eval.bench.tables import table, time_text, write
from jrt_eval.kernels import status
from jrt_eval.kernels.memory import keep_freed_memory


def _processor() -> str:
    """The processor's name and number of cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _describe(device: torch.device) -> dict[str, Any]:
    """Facts about the machine, for the head of the output."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": status().text,
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def _print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        click.echo(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


def cpu_kernels(
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    sizes: dict[str, Any],
    plot: bool,
    output: Path | None,
) -> None:
    """Time Taylor linear attention on a CPU: prefill and gradients at each length, a decode step at each batch size."""
    lengths, batches, batch = lengths or kernels.LENGTHS, batches or kernels.BATCHES, batch or 1
    facts = _describe(sizes["device"])
    facts["allocator keeps memory"] = keep_freed_memory()
    facts["decode call overhead (s)"] = kernels.call_overhead(sizes["device"])
    _print_facts(facts)
    if not alternatives.fast_transformers():
        click.echo("fast-transformers: not installed, not measured")
    shape = "{heads} heads, feature dim {d}, head dim {f}".format(**sizes)
    click.echo(f"\nbatch {batch}, {shape}; medians")

    rows: list[kernels.CpuTiming] = []
    for found in kernels.measure(lengths, batches, batch=batch, **sizes):
        rows += found  # printed and written as they come, since a long run may be interrupted
        click.echo("\n" + _cpu_table(found))
        if output:
            write(output, "kernels", facts, rows)
    for text in _cpu_summaries(rows):
        click.echo("\n" + text)
    if output:
        if plot:
            title = f"Taylor linear attention, batch {batch}, {shape}, cpu"
            plots.time_against_length(rows, output / "kernels.png", title)
        click.echo(f"\nwritten to {output}")


def _cpu_table(found: Sequence[kernels.CpuTiming]) -> str:
    """All implementations at one length, or of one decode step, fastest first."""
    mine = next(row for row in found if row.name == kernels.OURS)
    decode = mine.operator == "decode"
    lines = []
    for row in sorted(found, key=lambda row: row.seconds):
        line = [row.name, time_text(row.seconds), f"{row.seconds / mine.seconds:.2f}x"]
        if not decode:
            line += [_percent(row.matmul_fraction), f"{row.seconds / row.length * 1e6:.2f}"]
        lines.append(line)
    if decode:
        return table([f"decode step, batch {mine.batch}", "time", "of ours"], lines)
    return table([f"{mine.operator}, {mine.length} tokens", "time", "of ours", "of matmul", "us/token"], lines)


def _cpu_summaries(rows: Sequence[kernels.CpuTiming]) -> list[str]:
    """For prefill and gradients, a table with a line for each length: ours and the fastest other implementation."""
    header = ["ours", "us/token", "of matmul", "matmul GFLOP/s", "fastest other", "of ours"]
    texts = []
    for operator in ("prefill", "gradients"):
        lines = []
        for mine in rows:
            if mine.operator != operator or mine.name != kernels.OURS:
                continue
            here = [row for row in rows if (row.operator, row.length) == (operator, mine.length)]
            others = sorted((r for r in here if not r.name.startswith(kernels.OURS)), key=lambda row: row.seconds)
            line = [str(mine.length), time_text(mine.seconds), f"{mine.seconds / mine.length * 1e6:.2f}"]
            line += [
                _percent(mine.matmul_fraction),
                "" if mine.matmul_flops is None else f"{mine.matmul_flops / 1e9:.0f}",
            ]
            line += [others[0].name, f"{others[0].seconds / mine.seconds:.2f}x"] if others else ["", ""]
            lines.append(line)
        if lines:
            texts.append(table([f"{operator}, tokens", *header], lines))
    return texts


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def recurrent_kernels(
    operator: str,
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    device: torch.device,
    plot: bool,
    output: Path | None,
) -> None:
    """Time a recurrent operator and PyTorch's form of it: prefill and gradients at each length, a step at each batch size."""
    lengths, batches, batch = lengths or recurrences.LENGTHS, batches or kernels.BATCHES, batch or 1
    facts = _describe(device) | {"operator": operator, "sizes": recurrences.sizes(operator)}
    if device.type == "cpu":
        facts["allocator keeps memory"] = keep_freed_memory()
    _print_facts(facts)
    click.echo(f"\nbatch {batch}; medians")
    rows: list[kernels.CpuTiming] = []
    for found in recurrences.measure(operator, lengths, batches, batch, device):
        rows += found  # printed and written as they come, since a long run may be interrupted
        click.echo("\n" + _cpu_table(found))
        if output:
            write(output, operator, facts, rows)
    for text in _cpu_summaries(rows):
        click.echo("\n" + text)
    if output:
        if plot:
            plots.time_against_length(rows, output / f"{operator}.png", f"{operator}, batch {batch}, {device.type}")
        click.echo(f"\nwritten to {output}")


def gpu_kernels(
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    seconds: float,
    sizes: dict[str, Any],
    plot: bool,
    output: Path | None,
) -> None:
    """Time Taylor linear attention on a GPU: prefills over lengths and batch sizes, and a decode step at each batch size."""
    shape, batch = cuda.HeadShape(**sizes), batch or cuda.BATCH
    batches = batches or cuda.BATCHES
    facts = _describe(shape.device)
    for name, error in cuda.errors(shape, cuda_forms.forms()).items():
        facts[f"error of {name}"] = error
    _print_facts(facts)
    click.echo(f"\n{shape.heads} heads, feature dim {shape.d}, head dim {shape.f}, bfloat16; medians")
    rows: list[cuda.GpuTiming] = []
    for found in cuda.measure(shape, cuda.points(lengths or cuda.LENGTHS, batches, batch), batches, seconds):
        rows += found  # printed and written as they come, since a long run may be interrupted
        first = found[0]
        what = f"decode step, batch {first.batch}"
        if first.sweep != "decode":
            what = f"prefill, {first.batch} x {first.length:,} tokens"
        click.echo("\n" + table([what, *cuda.HEADER], cuda.lines(found)))
        if output:
            write(output, "kernels_cuda", facts, rows)
    facts |= cuda.rates(rows)
    click.echo("\n" + table(cuda.SUMMARY, cuda.summary(rows)))
    _print_facts(cuda.rates(rows))
    if output:
        write(output, "kernels_cuda", facts, rows)
        if plot:
            title = (
                f"Prefill, {shape.heads} heads, {shape.d} -> {shape.f}, bfloat16, {facts.get('device', shape.device)}"
            )
            plots.sweeps(rows, batch, output / "kernels_cuda.png", title)
        click.echo(f"\nwritten to {output}")


def whole_models(
    names: Sequence[str],
    length: int,
    steps: int,
    rounds: int,
    layers: int | None,
    device: torch.device,
    plot: bool,
    output: Path | None,
) -> None:
    """Time models of the released shapes with PyTorch's operators and with the compiled ones."""
    facts = _describe(device)
    if device.type == "cpu":
        facts["allocator keeps memory"] = keep_freed_memory()
    _print_facts(facts)
    results: dict[str, list[model.ModelTiming]] = {}
    found = []
    for name in names:
        config = released_config(name, layers)
        runs = model.measure(["torch", "auto"], length=length, steps=steps, rounds=rounds, device=device, config=config)
        window = config.get("alt_mixer_2", {}).get("window_size")
        what = f"{name}, {config['n_layer']} layers, {length} tokens" + (f", window {window}" if window else "")
        click.echo(f"\n{what}\n" + _model_table(runs, length))
        results[name] = runs
        found.append({"model": name, "length": length, "layers": config["n_layer"], "window": window})
        found[-1]["runs"] = [vars(run) for run in runs]
        if output:  # written as they come, since a long run may be interrupted
            output.mkdir(parents=True, exist_ok=True)
            (output / "model.json").write_text(json.dumps({"machine": facts, "models": found}, indent=1) + "\n")
    if output:
        if plot:
            plots.whole_models(results, length, output / "model.png")
        click.echo(f"\nwritten to {output}")


def _model_table(runs: Sequence[model.ModelTiming], length: int) -> str:
    lines = [
        [
            run.backend,
            f"{run.prefill_seconds:.3f} s",
            f"{length / run.prefill_seconds:.0f}",
            f"{run.operator_seconds / run.prefill_seconds:.1%}",
            f"{run.mixer_seconds / run.prefill_seconds:.1%}",
            time_text(run.step_seconds),
            f"{1 / run.step_seconds:.1f}",
        ]
        for run in runs
    ]
    return table(["backend", "prefill", "tokens/s", "in operators", "in mixers", "step", "tokens/s"], lines)
