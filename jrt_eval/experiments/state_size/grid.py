"""The set-disjointness sweep (JRT paper, figure 2): which state does a model need when the long set comes first?

A point of the sweep is (width, feature dim, causal or not); its models, one for each learning rate and seed, are
trained together (jrt_eval.experiments.state_size.stacked). A finished point is a JSON file under OUTPUT/points, written whole or
not at all; a point that another process works on is locked, so several processes may share a sweep.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jrt_eval.data import set_disjointness as sets
from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size.stacked import HEADS, Stack, StackedAdamW, state_bytes
from jrt_eval.experiments.state_size.steps import Steps

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Settings:
    """What all points of a sweep share. The defaults are the paper's, but for `steps` (48 epochs there: 90,000).

    rates: peak learning rates; each meets each seed. A seed decides a model's weights and the order of its examples,
    which are the same for all. limit: sets larger than this are left out, in training and in evaluation. curriculum:
    the share of the steps over which the pairs of sizes come in, small ones first (the paper has them all at once).
    hold: the share of the steps before the rate begins to fall (the paper: none). marked, sharp: see Stack.
    pairs: (|A|, |B|) to train and evaluate on, in both orders, instead of the paper's.
    """

    rates: tuple[float, ...] = (1e-4, 5e-4, 8e-4)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 90_000
    batch: int = 128
    warmup: float = 0.02
    curriculum: float = 0.0
    weight_decay: float = 0.1
    examples: int = sets.TRAINING_EXAMPLES
    evaluation_examples: int = sets.EVALUATION_EXAMPLES
    vocabulary: int = sets.VOCABULARY
    limit: int = 1024
    hold: float = 0.0
    beta2: float = 0.999
    marked: bool = False
    sharp: float = 1.0
    pairs: Sizes = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "examples", "evaluation_examples", "limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.curriculum <= 1:
            raise UserError(f"curriculum: a share of the steps, from 0 to 1, got {self.curriculum}")
        if not 0 <= self.hold < 1:
            raise UserError(f"hold: a share of the steps, from 0 to less than 1, got {self.hold}")
        if not 0 < self.beta2 < 1:
            raise UserError(f"beta2: must be between 0 and 1, got {self.beta2}")
        if not self.rates or not self.seeds:
            raise UserError("rates and seeds: at least one of each is needed")
        if any(size < 1 for pair in self.pairs for size in pair):
            raise UserError("pairs: a set has at least one element")
        if any(first == second for first, second in self.pairs):
            raise UserError("pairs: the two orders of a pair are compared, so its sets must differ in size")
        if not 0 < self.sharp < math.inf:
            raise UserError(f"sharp: must be above 0, got {self.sharp}")
        if not self.training_sizes or not self.evaluation_sizes:
            raise UserError(f"limit: no pair of sets has sizes up to {self.limit}; the smallest needs 32")
        largest = max(max(pair) for pair in (*self.training_sizes, *self.evaluation_sizes))
        if largest > (half := (self.vocabulary - sets.RESERVED) // 2):
            raise UserError(f"vocabulary: {self.vocabulary} has {half} tokens for a set of {largest}; lower limit")

    @property
    def training_sizes(self) -> Sizes:
        both = tuple(order for pair in self.pairs for order in (pair, pair[::-1]))
        return tuple(dict.fromkeys(pair for pair in both or sets.TRAINING if max(pair) <= self.limit))

    @property
    def evaluation_sizes(self) -> Sizes:
        """The paper's; with a limit the training sizes as well, since few of its own are left. Or `pairs`."""
        if self.pairs:
            return self.training_sizes
        pairs = sets.EVALUATION if self.limit >= 1024 else (*sets.EVALUATION, *sets.TRAINING)
        return tuple(dict.fromkeys(pair for pair in pairs if max(pair) <= self.limit))


@dataclass(frozen=True)
class Point:
    """A shape of model."""

    width: int
    feature_dim: int
    causal: bool

    def __post_init__(self) -> None:
        if self.width < HEADS or self.width % HEADS:
            raise UserError(f"widths: {self.width} does not split into {HEADS} heads")
        if self.feature_dim < 1:
            raise UserError(f"feature dims: must be at least 1, got {self.feature_dim}")

    @property
    def name(self) -> str:
        return f"width{self.width}-features{self.feature_dim}-{'causal' if self.causal else 'noncausal'}"


@dataclass
class Examples:
    """Per pair of sizes: inputs (count, length) and answers (count,), on the device that trains."""

    inputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    answers: dict[tuple[int, int], Tensor] = field(default_factory=dict)


TRAINING_SEED, EVALUATION_SEED = 0, 1


def make_examples(sizes: Sizes, count: int, seed: int, vocabulary: int, device: torch.device) -> Examples:
    """`count` examples of every pair of sizes; training and evaluation have seeds of their own."""
    made = Examples()
    for first, second in sizes:
        inputs, answers = sets.examples(first, second, count, seed, vocabulary)
        made.inputs[first, second] = torch.from_numpy(inputs).to(device)
        made.answers[first, second] = torch.from_numpy(answers).to(device)
    return made


def train_point(
    point: Point,
    settings: Settings,
    training: Examples,
    device: torch.device,
    report: Callable[[int, float], Any],
    *,
    capture: bool = True,
) -> tuple[Stack, list[tuple[float, int]], list[list[float]]]:
    """Train every (rate, seed) of a point together: the stack, its copies' (rate, seed), and their losses.

    report(step, mean loss) is called every hundredth step, whose losses (copies) are returned, as rows that begin with
    the step. capture: on a GPU, run the steps as CUDA graphs.
    """
    copies = [(rate, seed) for rate in settings.rates for seed in settings.seeds]
    model = Stack(
        point.width,
        point.feature_dim,
        settings.vocabulary,
        [seed for _, seed in copies],
        causal=point.causal,
        marked=settings.marked,
        sharp=settings.sharp,
    ).to(device)
    optimizer = StackedAdamW(model, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay)
    peak = torch.tensor([rate for rate, _ in copies], device=device)
    order = np.random.default_rng([7, *settings.seeds])
    draws = {seed: np.random.default_rng([11, seed]) for seed in settings.seeds}
    sizes = tuple(sorted(settings.training_sizes, key=max))
    history: list[list[float]] = []
    every = max(1, settings.steps // 100)
    steps = Steps(model, optimizer, training, settings.batch)
    if capture and device.type == "cuda":
        steps.capture(sizes)
    for step in range(1, settings.steps + 1):
        size = sizes[int(order.integers(_open_sizes(sizes, settings.curriculum, step / settings.steps)))]
        chosen = {seed: rng.integers(settings.examples, size=settings.batch) for seed, rng in draws.items()}
        index = torch.from_numpy(np.stack([chosen[seed] for _, seed in copies]))
        steps.run(size, index, peak * _share_of_rate(settings, step))
        if step % every == 0 or step == settings.steps:
            values = steps.losses.tolist()
            history.append([step, *values])
            report(step, float(np.mean(values)))
    return model, copies, history


def _share_of_rate(settings: Settings, step: int) -> float:
    """Warm-up, the peak for as long as it is held, then half a cosine to zero."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step <= warm:
        return step / warm
    held = max(warm, round(settings.hold * settings.steps))
    progress = max(0.0, (step - held) / max(1, settings.steps - held))
    return float(0.5 * (1 + np.cos(np.pi * progress)))


def _open_sizes(sizes: Sizes, curriculum: float, progress: float) -> int:
    """How many of the pairs, sorted by their larger set, take part; both orders of a pair come in together."""
    if progress >= curriculum:
        return len(sizes)
    kinds = sorted({max(pair) for pair in sizes})
    largest = kinds[int(progress / curriculum * len(kinds))]
    return sum(max(pair) <= largest for pair in sizes)


@torch.no_grad()
def accuracies(model: Stack, evaluation: Examples, size: tuple[int, int], budget: int = 2**26) -> list[float]:
    """Each copy's share of right answers for a pair of sizes; `budget`: largest number of attention scores at once."""
    inputs, answers = evaluation.inputs[size], evaluation.answers[size]
    copies = len(model.embedding)
    rows = max(1, budget // (copies * HEADS * inputs.shape[1] ** 2))
    right = torch.zeros(copies, device=inputs.device)
    for start in range(0, len(inputs), rows):
        part = inputs[start : start + rows].expand(copies, -1, -1)
        right += (model(part).argmax(-1) == answers[start : start + rows]).sum(1)
    return [float(value) for value in right / len(inputs)]


def run_point(
    point: Point,
    settings: Settings,
    training: Examples,
    evaluation: Examples,
    device: torch.device,
    report: Callable[[int, float], Any],
    *,
    capture: bool = True,
) -> dict[str, Any]:
    """Train and evaluate a point: what its JSON file holds."""
    began = time.perf_counter()
    model, copies, history = train_point(point, settings, training, device, report, capture=capture)
    scores = [
        {"rate": rate, "seed": seed, "first": size[0], "second": size[1], "accuracy": accuracy}
        for size in settings.evaluation_sizes
        for (rate, seed), accuracy in zip(copies, accuracies(model, evaluation, size), strict=True)
    ]
    return {
        "point": asdict(point),
        "settings": asdict(settings),
        "state_bytes": state_bytes(point.width, point.feature_dim),
        "parameters": sum(p[0].numel() for p in model.parameters()),
        "scores": scores,
        "losses": history,
        "seconds": round(time.perf_counter() - began, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def run(
    points: list[Point],
    settings: Settings,
    output: Path,
    device: torch.device,
    report: Callable[[Point, int, float], Any],
    done: Callable[[Point], Any],
    *,
    capture: bool = True,
) -> int:
    """Run the points that no one has run yet; returns how many this call ran. `done` is told of those found as well."""
    folder = output / "points"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None
    examples: tuple[Examples, Examples] | None = None
    count = 0
    for point in points:
        path = folder / f"{point.name}.json"
        with _claim(folder / f"{point.name}.lock") as mine:
            if not mine:
                continue
            if path.exists():
                _same(json.loads(path.read_text()), settings, path)
                done(point)
                continue
            if examples is None:
                examples = (
                    make_examples(
                        settings.training_sizes, settings.examples, TRAINING_SEED, settings.vocabulary, device
                    ),
                    make_examples(
                        settings.evaluation_sizes,
                        settings.evaluation_examples,
                        EVALUATION_SEED,
                        settings.vocabulary,
                        device,
                    ),
                )
            result = run_point(point, settings, *examples, device, partial(report, point), capture=capture)
            unfinished = path.with_suffix(".part")
            try:
                unfinished.write_text(json.dumps(result, indent=1))
                unfinished.rename(path)
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                raise UserError(f"could not write {path}: {error.strerror}; finished points stay") from None
            count += 1
            done(point)
    return count


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process may have the point; an advisory lock, released also when its holder is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _same(found: dict[str, Any], settings: Settings, path: Path) -> None:
    wanted = json.loads(json.dumps(asdict(settings)))
    defaults = json.loads(json.dumps(asdict(Settings())))  # what a setting was before there was one
    ran = {**defaults, **found.get("settings", {})}
    changed = [key for key, value in wanted.items() if ran.get(key) != value]
    if changed:
        raise UserError(f"{path} was run with other settings ({', '.join(changed)}); choose another output folder")


def results(output: Path) -> list[dict[str, Any]]:
    """The finished points of a sweep, each as `run_point` returned it."""
    return [json.loads(path.read_text()) for path in sorted((output / "points").glob("*.json"))]
