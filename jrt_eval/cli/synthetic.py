"""`jrt-eval synthetic`: the state-size grid of set disjointness, its data frame and its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jrt_eval.errors import UserError


def _numbers(kind: Callable[[str], Any], such_as: str = "4,8,16") -> Any:
    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError:
            raise UserError(f"--{parameter.name}: {value!r} is not a list such as {such_as}") from None

    return parse


def _pair(text: str) -> tuple[int, int]:
    short, long = text.split("x")
    return int(short), int(long)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="runs/synthetic", help="Folder of the results."
)
@click.option(
    "--preset", type=click.Choice(["small", "marked", "paper"]), default="small", help="Defaults of the options below."
)
@click.option("--widths", callback=_numbers(int), help="Widths: 36,48,64,96,128 in the paper; 16,32,64 in small.")
@click.option(
    "--features", callback=_numbers(int), help="Feature dimensions: 4,8,16,24 in the paper; 2,4,8,16 in small."
)
@click.option("--rates", callback=_numbers(float), help="Peak learning rates. The best model of each shape is shown.")
@click.option("--seeds", callback=_numbers(int), help="Seeds, each combined with every rate.")
@click.option("--steps", type=int, help="Training steps.")
@click.option("--batch", type=int, help="Examples per step.")
@click.option("--examples", type=int, help="Training examples for each pair of sizes.")
@click.option("--vocabulary", type=int, help="Tokens, four of them reserved.")
@click.option("--curriculum", type=float, help="Share of the steps over which larger sets are introduced.")
@click.option("--limit", type=int, help="Leave out larger sets.")
@click.option(
    "--pairs", callback=_numbers(_pair, "4x16,4x64"), help="Sizes of sets, in both orders, instead of the paper's."
)
@click.option("--hold", type=float, help="Share of the steps before the learning rate begins to fall.")
@click.option("--beta2", type=float, help="AdamW's second beta.")
@click.option("--weight-decay", type=float, help="AdamW's weight decay; norms have none.")
@click.option("--marked/--unmarked", default=None, help="Embeddings tell which of the two sets a token is in.")
@click.option("--sharp", type=float, help="Initial value of the last norm's weights.")
@click.option("--only", type=click.Choice(["causal", "noncausal"]), help="Only causal or only non-causal models.")
@click.option("--device", help="Default: cuda if there is a GPU, else cpu.")
@click.option("--capture/--no-capture", default=True, help="On a GPU, run each training step as a CUDA graph.")
@click.option("--draw-only", is_flag=True, help="Train nothing; write the frame and the figure of the finished points.")
def synthetic(
    output: Path,
    preset: str,
    only: str | None,
    device: str | None,
    capture: bool,
    draw_only: bool,
    **given: Any,
) -> None:
    """Train small models on set disjointness and draw accuracy against state size (JRT paper, figure 2).

    The same command resumes an interrupted grid, and several processes may share an output folder. Writes
    OUTPUT/points/*.json, OUTPUT/scores.csv and OUTPUT/figure.png.
    """
    from jrt_eval.experiments.state_size import figure
    from jrt_eval.experiments.state_size.grid import PRESETS
    from jrt_eval.experiments.state_size.points import read_points
    from jrt_eval.files import replacing

    grid = PRESETS[preset].changed(**given)
    if not draw_only:
        _run(grid.points(only), grid.settings, output, device, capture)
    found = read_points(output)
    if not found:
        raise UserError(f"{output}/points has no finished point")
    frame = figure.frame(found)
    with replacing(output / "scores.csv") as temporary:
        frame.to_csv(temporary, index=False)
    try:
        figure.draw(frame, output / "figure.png")
    except ImportError:
        raise UserError("the figure needs matplotlib: pip install 'jrt-eval[report]'; scores.csv is written") from None
    click.echo(figure.summary(frame))
    click.echo(f"\n{figure.pair_summary(frame)}")
    click.echo(f"\n{len(found)} points: {output / 'scores.csv'}, {output / 'figure.png'}")


def _run(points: list[Any], settings: Any, output: Path, device: str | None, capture: bool) -> None:
    """Run the grid with a progress bar over the steps of all its points."""
    import torch
    from tqdm import tqdm

    from jrt_eval.experiments.state_size.points import run_grid

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    # The products of the feature map cancel each other, which TF32 is too coarse for; models this small gain nothing.
    torch.set_float32_matmul_precision("highest")
    with tqdm(total=len(points) * settings.steps, unit="step", dynamic_ncols=True) as bar:
        reached: dict[str, int] = {}

        def report(point: Any, step: int, loss: float) -> None:
            bar.set_postfix_str(f"{point.name}: loss {loss:.3f}")
            bar.update(step - reached.get(point.name, 0))
            reached[point.name] = step

        def done(point: Any) -> None:
            bar.update(settings.steps - reached.get(point.name, 0))
            reached[point.name] = settings.steps

        run_grid(points, settings, output, place, report, done, capture=capture)
