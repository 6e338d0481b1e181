"""`jrt-eval bench kernels` and `jrt-eval bench model`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from jrt_eval.errors import UserError

# The first has options of its own; the others are those of `jrt_eval.bench.recurrences`, which imports torch.
OPERATORS = (
    "taylor_linear_attention",
    "selective_scan",
    "ssd",
    "short_conv",
    "gated_linear_attention",
    "gated_delta_rule",
)


def _numbers(_: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",") if part]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(
            f"{value!r}: give positive whole numbers with commas, for example --{option.name} 2048,4096"
        )
    return numbers


def _device(name: str, threads: int | None) -> Any:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device(name)


def _check_plot(plot: bool, output: Path | None) -> None:
    if output and plot and find_spec("matplotlib") is None:
        raise UserError("plots need matplotlib: pip install 'jrt-eval[report]', or pass --no-plot")


threads_option = click.option("--threads", type=click.IntRange(1), help="PyTorch threads.  [default: all]")
device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
plot_option = click.option("--plot/--no-plot", default=True, help="Write a plot into the output folder.")
output_option = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results (JSON, CSV, plot)."
)


@click.group()
def bench() -> None:
    """Measure the kernels and the models on this machine.

    \b
    jrt-eval bench kernels                   linear attention against other implementations, on the CPU
    jrt-eval bench kernels --operator ssd    the recurrence of Mamba-2 against PyTorch
    jrt-eval bench kernels --device cuda     linear attention on a GPU, over the lengths of the paper's Table 5
    jrt-eval bench model --model mamba-360m  a whole model, with and without the compiled kernels

    All candidates are timed in turn, so that other load affects them alike; the tables show medians. Compare ratios
    within one run rather than times of different runs.
    """


@bench.command()
@click.option(
    "--operator",
    type=click.Choice(OPERATORS),
    default=OPERATORS[0],
    show_default=True,
    help="Which operator. All but the first are timed against PyTorch, with the sizes of a small model.",
)
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
    help="Approximate timing of each implementation at each size, on a GPU.",
)
@plot_option
@threads_option
@device_option
@output_option
@click.pass_context
def kernels(
    context: click.Context,
    operator: str,
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
    """Time an operator: Taylor linear attention against other implementations, with softmax attention for scale.

    \b
    jrt-eval bench kernels --operator selective_scan
    jrt-eval bench kernels --operator ssd --device cuda --batch 32 --lengths 2048

    On a CPU: prefill, gradients and decode steps in float32. "of matmul" is the operator's minimal FLOP/s as a share of
    a matrix product's, timed in the same rounds.

    On a GPU: prefills in bfloat16 over the lengths and batch sizes of the paper's Table 5. "of copy" is the rate of the
    fewest possible bytes as a share of a copy's.

    Implementations that would take more than 4 s or too much memory for one call are left out.
    """
    from jrt_eval.bench import commands

    place = _device(device, threads)
    _check_plot(plot, output)
    if operator != OPERATORS[0]:
        for name in ("heads", "feature_dim", "head_dim", "seconds"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is for --operator {OPERATORS[0]}; the sizes of {operator} are fixed")
        commands.recurrent_kernels(operator, lengths, batches, batch, place, plot, output)
        return
    sizes = {"heads": heads, "d": feature_dim, "f": head_dim, "device": place}
    if device == "cuda":
        commands.gpu_kernels(lengths, batches, batch, seconds, sizes, plot, output)
    else:
        commands.cpu_kernels(lengths, batches, batch, sizes, plot, output)


@bench.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("jrt-360m",),
    show_default=True,
    help="A shape of configs/paper, for example based-360m, mamba-360m, mamba2-360m. May be given several times.",
)
@click.option("--length", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of the prompt.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Decode steps.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each backend.")
@click.option("--layers", type=click.IntRange(1), help="Only the first so many layers, for a quick look.")
@plot_option
@threads_option
@device_option
@output_option
def model(
    models: tuple[str, ...],
    length: int,
    steps: int,
    rounds: int,
    layers: int | None,
    plot: bool,
    threads: int | None,
    device: str,
    output: Path | None,
) -> None:
    """Time whole models of the released shapes, with PyTorch's operators and with the compiled ones.

    \b
    jrt-eval bench model --model jrt-360m --model mamba-360m --model mamba2-360m

    One prompt, random weights, float32. "in operators" is the share of the prefill spent in the functions of
    jrt_eval.kernels; "in mixers" includes the projections of the mixers.
    """
    from jrt_eval.bench import commands

    place = _device(device, threads)
    _check_plot(plot, output)
    commands.whole_models(models, length, steps, rounds, layers, place, plot, output)
