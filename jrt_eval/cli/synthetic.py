"""`jrt-eval synthetic`: the set-disjointness sweep, its frame and its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jrt_eval.errors import UserError

if TYPE_CHECKING:
    from jrt_eval.experiments.state_size.grid import Settings

_SMALL = {
    "rates": (1e-3, 2e-3, 4e-3),
    "seeds": (0, 1),
    "steps": 6000,
    "vocabulary": 260,
    "limit": 128,
    "curriculum": 0.5,
}
_MARKED = {
    "rates": (3e-3, 6e-3),
    "seeds": (0, 1, 2),
    "steps": 8000,
    "vocabulary": 100,
    "pairs": ((4, 16), (2, 40), (4, 40)),
    "curriculum": 0.15,
    "hold": 0.6,
    "beta2": 0.98,
    "weight_decay": 0.01,
    "sharp": 4.0,
    "marked": True,
}
_PRESETS: dict[str, dict[str, Any]] = {"small": _SMALL, "marked": _MARKED, "paper": {}}
_SHAPES = {
    "small": ((16, 32, 64), (2, 4, 8, 16)),
    "marked": ((16, 32), (1, 2, 4)),
    "paper": ((36, 48, 64, 96, 128), (4, 8, 16, 24)),
}


def _numbers(kind: Callable[[str], Any], such_as: str = "4,8,16") -> Any:
    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError:
            raise UserError(f"--{parameter.name}: {value!r} is no list such as {such_as}") from None

    return parse


def _pair(text: str) -> tuple[int, int]:
    short, long = text.split("x")
    return int(short), int(long)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("-o", "--output", type=click.Path(path_type=Path), default="runs/synthetic")
@click.option("--preset", type=click.Choice(list(_PRESETS)), default="small", help="Where other options start from.")
@click.option("--widths", callback=_numbers(int), help="36,48,64,96,128 in the paper; 16,32,64 if small.")
@click.option("--features", callback=_numbers(int), help="Feature dims: 4,8,16,24 in the paper; 2,4,8,16 if small.")
@click.option("--rates", callback=_numbers(float), help="Peak learning rates; the best is shown.")
@click.option("--seeds", callback=_numbers(int), help="Each with every rate.")
@click.option("--steps", type=int)
@click.option("--batch", type=int)
@click.option("--examples", type=int, help="Training examples for each pair of sizes.")
@click.option("--vocabulary", type=int)
@click.option("--curriculum", type=float, help="Share of the steps over which larger sets come in.")
@click.option("--limit", type=int, help="Leave out sets that are larger.")
@click.option(
    "--pairs", callback=_numbers(_pair, "4x16,4x64"), help="Sizes of sets, instead of the paper's; both orders."
)
@click.option("--hold", type=float, help="Share of the steps before the learning rate begins to fall.")
@click.option("--beta2", type=float, help="AdamW's second beta.")
@click.option("--weight-decay", type=float, help="None on norms.")
@click.option("--marked/--unmarked", default=None, help="Embeddings tell which of the sets a token is in.")
@click.option("--sharp", type=float, help="Where the last norm's weights begin.")
@click.option("--only", type=click.Choice(["causal", "noncausal"]), help="Only such models.")
@click.option("--device", help="cuda where there is one, else cpu.")
@click.option("--capture/--no-capture", default=True, help="On a GPU, run each training step as a CUDA graph.")
@click.option("--draw-only", is_flag=True, help="Run nothing: frame and figure of the points that are there.")
def synthetic(
    output: Path,
    preset: str,
    widths: Any,
    features: Any,
    only: str | None,
    device: str | None,
    capture: bool,
    draw_only: bool,
    **given: Any,
) -> None:
    """Train small models on set disjointness and draw accuracy against state size (JRT paper, figure 2).

    Run again, it goes on where it stopped; several processes may work on one output. Writes OUTPUT/points/*.json,
    OUTPUT/scores.csv and OUTPUT/figure.png.
    """
    from jrt_eval.experiments.state_size import figure
    from jrt_eval.experiments.state_size import grid as sweep

    chosen: dict[str, Any] = {
        **_PRESETS[preset],
        **{k: v for k, v in given.items() if v is not None},
    }
    settings = sweep.Settings(**chosen)
    widths, features = widths or _SHAPES[preset][0], features or _SHAPES[preset][1]
    kinds = [kind for kind in (True, False) if only is None or (only == "causal") == kind]
    points = [sweep.Point(w, f, causal) for w in widths for f in features for causal in kinds]
    if not draw_only:
        _run(points, settings, output, device, capture)
    found = sweep.results(output)
    if not found:
        raise UserError(f"{output}/points holds no finished point")
    frame = figure.frame(found)
    try:
        frame.to_csv(output / "scores.csv", index=False)
        figure.draw(frame, output / "figure.png")
    except ImportError:
        raise UserError("the figure needs matplotlib: pip install 'jrt-eval[report]'; scores.csv is written") from None
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None
    click.echo(figure.summary(frame))
    click.echo(f"\n{figure.pair_summary(frame)}")
    click.echo(f"\n{len(found)} points: {output / 'scores.csv'}, {output / 'figure.png'}")


def _run(points: list[Any], settings: Settings, output: Path, device: str | None, capture: bool) -> None:
    import torch
    from tqdm import tqdm

    from jrt_eval.experiments.state_size import grid as sweep

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    torch.set_float32_matmul_precision("highest")  # products of features cancel; and models this small gain nothing
    with tqdm(total=len(points) * settings.steps, unit="step", dynamic_ncols=True) as bar:
        reached: dict[str, int] = {}

        def report(point: Any, step: int, loss: float) -> None:
            bar.set_postfix_str(f"{point.name}: loss {loss:.3f}")
            bar.update(step - reached.get(point.name, 0))
            reached[point.name] = step

        def done(point: Any) -> None:
            bar.update(settings.steps - reached.get(point.name, 0))
            reached[point.name] = settings.steps

        sweep.run(points, settings, output, place, report, done, capture=capture)
