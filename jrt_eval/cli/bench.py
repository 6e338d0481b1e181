"""`jrt-eval bench kernels` and `jrt-eval bench model`."""

from __future__ import annotations

import json
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from jrt_eval.bench.tables import table, time_text, write
from jrt_eval.errors import UserError


def _numbers(_: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",") if part]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(
            f"{value!r}: positive whole numbers separated by commas are needed, e.g. --{option.name} 2048,4096"
        )
    return numbers


def _device(name: str, threads: int | None) -> Any:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device(name)


def _processor() -> str:
    """Its name and cores, as far as the system says."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _describe(device: Any) -> dict[str, Any]:
    import torch

    from jrt_eval.kernels import status

    facts: dict[str, Any] = {
        "processor": _processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": status().text,
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


threads_option = click.option("--threads", type=click.IntRange(1), help="PyTorch threads; all by default.")
device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
output_option = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="A folder for the results (JSON, CSV, plot)."
)


@click.group()
def bench() -> None:
    """Measure the kernels and the models on this machine."""


@bench.command()
@click.option(
    "--lengths",
    callback=_numbers,
    show_default="128,512,2048,4096,8192,32768,131072; on a GPU every power of two from 2048 to 131072",
    help="Tokens of a prefill.",
)
@click.option(
    "--batches",
    callback=_numbers,
    show_default="1,8; on a GPU 2,4,8,16,32,64",
    help="Rows of a decode step; on a GPU also of prefills of 16,384 tokens.",
)
@click.option(
    "--batch", type=click.IntRange(1), show_default="1; on a GPU 16", help="Rows of the prefills in --lengths."
)
@click.option("--heads", type=click.IntRange(1), default=16, show_default=True)
@click.option("--feature-dim", type=click.IntRange(1), default=16, show_default=True)
@click.option("--head-dim", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05),
    default=1.0,
    show_default=True,
    help="Of timing, about, for each form at each point on a GPU; never fewer than two rounds.",
)
@click.option("--plot/--no-plot", default=True, help="Write a log-log plot into the output folder.")
@threads_option
@device_option
@output_option
def kernels(
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    heads: int,
    feature_dim: int,
    head_dim: int,
    seconds: float,
    plot: bool,
    threads: int | None,
    device: str,
    output: Path | None,
) -> None:
    """Taylor linear attention beside what else computes it: medians and ratios.

    On a CPU in float32, with the share of this machine's own matrix-product rate, timed in the same rounds (over the operator's
    minimal FLOPs). On a GPU in bfloat16: the two sweeps of the paper's Table 5, with the share of a copy's bandwidth over the
    fewest bytes that could be moved. Forms that would need more than 4 s or too much memory for one call are left out.
    """
    place = _device(device, threads)
    if output and plot and find_spec("matplotlib") is None:
        raise UserError("plots need matplotlib: pip install 'jrt-eval[report]', or pass --no-plot")
    sizes = {"heads": heads, "d": feature_dim, "f": head_dim, "device": place}
    if device == "cuda":
        _gpu_kernels(lengths, batches, batch, seconds, sizes, plot, output)
    else:
        _cpu_kernels(lengths, batches, batch, sizes, plot, output)


def _say(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        click.echo(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


def _cpu_kernels(
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    sizes: dict[str, Any],
    plot: bool,
    output: Path | None,
) -> None:
    from jrt_eval.bench import alternatives, plots
    from jrt_eval.bench import kernels as measured
    from jrt_eval.bench.timing import keep_memory

    lengths, batches, batch = lengths or measured.LENGTHS, batches or measured.BATCHES, batch or 1
    facts = _describe(sizes["device"])
    facts["allocator keeps memory"] = keep_memory()
    facts["decode call overhead (s)"] = measured.call_overhead(sizes["device"])
    _say(facts)
    if not alternatives.fast_transformers():
        click.echo("fast-transformers: not installed, not measured")
    shape = "{heads} heads, feature dim {d}, head dim {f}".format(**sizes)
    click.echo(f"\nbatch {batch}, {shape}; medians")

    rows: list[measured.Row] = []
    summaries: dict[str, list[list[str]]] = {}
    for found in measured.measure(lengths, batches, batch=batch, **sizes):
        rows += found  # printed and written as they come: a long run may be cut off
        found = sorted(found, key=lambda row: row.seconds)
        mine = next(row for row in found if row.name == measured.OURS)
        if mine.operator == "decode":
            lines = [[r.name, time_text(r.seconds), f"{r.seconds / mine.seconds:.2f}x"] for r in found]
            click.echo("\n" + table([f"decode step, batch {mine.batch}", "time", "of ours"], lines))
        else:
            lines = [
                [
                    r.name,
                    time_text(r.seconds),
                    f"{r.seconds / mine.seconds:.2f}x",
                    _percent(r.matmul_fraction),
                    f"{r.seconds / r.length * 1e6:.2f}",
                ]
                for r in found
            ]
            header = [f"{mine.operator}, {mine.length} tokens", "time", "of ours", "of matmul", "us/token"]
            click.echo("\n" + table(header, lines))
            others = [r for r in found if not r.name.startswith(measured.OURS)]
            summaries.setdefault(mine.operator, []).append(
                [
                    str(mine.length),
                    time_text(mine.seconds),
                    f"{mine.seconds / mine.length * 1e6:.2f}",
                    _percent(mine.matmul_fraction),
                    "" if mine.matmul_flops is None else f"{mine.matmul_flops / 1e9:.0f}",
                    others[0].name if others else "",
                    f"{others[0].seconds / mine.seconds:.2f}x" if others else "",
                ]
            )
        if output:
            write(output, "kernels", facts, rows)
    for operator, lines in summaries.items():
        header = [f"{operator}, tokens", "ours", "us/token", "of matmul", "matmul GFLOP/s", "fastest other", "of ours"]
        click.echo("\n" + table(header, lines))

    if output:
        if plot:
            title = f"Taylor linear attention, batch {batch}, {shape}, cpu"
            plots.time_against_length(rows, output / "kernels.png", title)
        click.echo(f"\nwritten to {output}")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _gpu_kernels(
    lengths: list[int] | None,
    batches: list[int] | None,
    batch: int | None,
    seconds: float,
    sizes: dict[str, Any],
    plot: bool,
    output: Path | None,
) -> None:
    from jrt_eval.bench import cuda, cuda_forms, plots

    shape, batch = cuda.Shape(**sizes), batch or cuda.BATCH
    batches = batches or cuda.BATCHES
    facts = _describe(shape.device)
    for name, error in cuda.errors(shape, cuda_forms.forms()).items():
        facts[f"error of {name}"] = error
    _say(facts)
    click.echo(f"\n{shape.heads} heads, feature dim {shape.d}, head dim {shape.f}, bfloat16; medians")
    rows: list[cuda.Row] = []
    for found in cuda.measure(shape, cuda.points(lengths or cuda.LENGTHS, batches, batch), batches, seconds):
        rows += found  # printed and written as they come: a long run may be cut off
        first = found[0]
        what = f"decode step, batch {first.batch}"
        if first.sweep != "decode":
            what = f"prefill, {first.batch} x {first.length:,} tokens"
        click.echo("\n" + table([what, *cuda.HEADER], cuda.lines(found)))
        if output:
            write(output, "kernels_cuda", facts, rows)
    facts |= cuda.rates(rows)
    click.echo("\n" + table(cuda.SUMMARY, cuda.summary(rows)))
    _say(cuda.rates(rows))
    if output:
        write(output, "kernels_cuda", facts, rows)
        if plot:
            title = (
                f"Prefill, {shape.heads} heads, {shape.d} -> {shape.f}, bfloat16, {facts.get('device', shape.device)}"
            )
            plots.sweeps(rows, batch, output / "kernels_cuda.png", title)
        click.echo(f"\nwritten to {output}")


@bench.command()
@click.option("--length", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of the prompt.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Decode steps.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each backend.")
@click.option("--layers", type=click.IntRange(1), default=26, show_default=True, help="Layers; fewer for a quick look.")
@threads_option
@device_option
@output_option
def model(
    length: int, steps: int, rounds: int, layers: int, threads: int | None, device: str, output: Path | None
) -> None:
    """A JRT-RNN of the 360M checkpoint's shape (random weights): PyTorch's operators before, the compiled ones after."""
    from jrt_eval.bench import model as measured
    from jrt_eval.bench.configs import released_config
    from jrt_eval.bench.timing import keep_memory

    place = _device(device, threads)
    facts = _describe(place)
    if device == "cpu":
        keep_memory()
    config = released_config("jrt-360m", layers)
    runs = measured.measure(["torch", "auto"], length=length, steps=steps, rounds=rounds, device=place, config=config)
    for key, value in facts.items():
        click.echo(f"{key}: {value}")
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
    header = ["backend", "prefill", "tokens/s", "in operators", "in mixers", "step", "tokens/s"]
    click.echo(f"\nJRT-RNN, {layers} layers, {length} tokens\n" + table(header, lines))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        found = {"machine": facts, "length": length, "layers": layers, "runs": [vars(run) for run in runs]}
        (output / "model.json").write_text(json.dumps(found, indent=1) + "\n")
        click.echo(f"\nwritten to {output}")
