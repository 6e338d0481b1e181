"""Running the points of a grid, one result file each, and reading these files back.

A finished point is a JSON file under OUTPUT/points. A point that a process works on is locked, so several processes may
share a grid.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size.examples import Examples, evaluation_examples, training_examples
from jrt_eval.experiments.state_size.grid import GridPoint, GridSettings
from jrt_eval.experiments.state_size.training import accuracies, train_point
from jrt_eval.files import read_text, reason, try_lock, write_text
from jrt_eval.settings import build, check_values

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """The accuracy of one model of a point for sets of sizes (first, second)."""

    rate: float
    seed: int
    first: int
    second: int
    accuracy: float

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise UserError(f"accuracy: must be from 0 to 1, got {self.accuracy}")
        if self.first < 1 or self.second < 1 or self.first == self.second:
            raise UserError(f"sizes of sets: must be at least 1 and differ, got {self.first} and {self.second}")


@dataclass(frozen=True)
class PointResult:
    """The contents of a point's file. losses: rows of the step and the loss of each model. seconds: wall-clock time."""

    point: GridPoint
    settings: GridSettings
    state_bytes: int
    parameters: int
    scores: tuple[Score, ...]
    losses: tuple[tuple[float, ...], ...]
    seconds: float
    device: str

    def __post_init__(self) -> None:
        if not self.scores:
            raise UserError("scores: there are none")
        if self.state_bytes < 1 or self.parameters < 1:
            raise UserError("state_bytes and parameters: must be at least 1")


def run_grid(
    points: list[GridPoint],
    settings: GridSettings,
    output: Path,
    device: torch.device,
    report: Callable[[GridPoint, int, float], Any],
    done: Callable[[GridPoint], Any],
    *,
    capture: bool = True,
) -> int:
    """Run the points that have no result yet and return how many this call ran.

    report(point, step, loss) is called during training, done(point) for every finished point, also for earlier ones. A
    damaged result is run again.
    """
    folder = output / "points"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {reason(error)}") from None
    examples: tuple[Examples, Examples] | None = None
    count = 0
    for point in points:
        path = folder / f"{point.name}.json"
        with try_lock(folder / f"{point.name}.lock") as mine:
            if not mine:
                continue
            if not _finished(path, settings):
                if examples is None:
                    examples = training_examples(settings, device), evaluation_examples(settings, device)
                result = run_point(point, settings, *examples, device, partial(report, point), capture=capture)
                write_text(path, json.dumps(asdict(result), indent=1))
                count += 1
            done(point)
    return count


def run_point(
    point: GridPoint,
    settings: GridSettings,
    training: Examples,
    evaluation: Examples,
    device: torch.device,
    report: Callable[[int, float], Any],
    *,
    capture: bool = True,
) -> PointResult:
    """Train and evaluate the models of a point."""
    began = time.perf_counter()
    model, copies, history = train_point(point, settings, training, device, report, capture=capture)
    scores = tuple(
        Score(rate, seed, *size, accuracy)
        for size in settings.evaluation_sizes
        for (rate, seed), accuracy in zip(copies, accuracies(model, evaluation, size), strict=True)
    )
    return PointResult(
        point,
        settings,
        state_bytes=point.state_bytes,
        parameters=sum(parameter[0].numel() for parameter in model.parameters()),
        scores=scores,
        losses=tuple(tuple(row) for row in history),
        seconds=round(time.perf_counter() - began, 1),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def read_point(path: Path) -> PointResult:
    """A point's file. Raises `UserError` if it is damaged."""
    try:
        content = json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {' '.join(str(error).split())[:200]}") from None
    try:
        check_values(content, str(path))
        return build(PointResult, content, str(path))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def read_points(output: Path) -> list[PointResult]:
    """The finished points of a grid. Damaged files are left out, with a warning."""
    found = []
    for path in sorted((output / "points").glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            found.append(read_point(path))
        except UserError as error:
            log.warning("left out: %s", error)
    return found


def _finished(path: Path, settings: GridSettings) -> bool:
    """Whether the point has an intact result. Raises `UserError` if it was made with other settings."""
    if not path.exists():
        return False
    try:
        result = read_point(path)
    except UserError as error:
        log.warning("run again: %s", error)
        return False
    changed = result.settings.differences(settings)
    if changed:
        raise UserError(f"{path} was run with other settings ({', '.join(changed)}); choose another output folder")
    return True
