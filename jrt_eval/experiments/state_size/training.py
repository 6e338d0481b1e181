"""Training and evaluating all models of one grid point together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jrt_eval.experiments.state_size.examples import Examples
from jrt_eval.experiments.state_size.grid import GridPoint, GridSettings, Sizes
from jrt_eval.experiments.state_size.stacked import HEADS, Stack, StackedAdamW
from jrt_eval.experiments.state_size.steps import TrainingSteps

Copies = list[tuple[float, int]]  # (peak learning rate, seed) of each model in a stack


def train_point(
    point: GridPoint,
    settings: GridSettings,
    training: Examples,
    device: torch.device,
    report: Callable[[int, float], Any],
    *,
    capture: bool = True,
) -> tuple[Stack, Copies, list[list[float]]]:
    """Train every (rate, seed) of a point together. Returns the stack, its copies and a history of losses.

    The history has about a hundred rows: the step, then the loss of each copy. report(step, mean loss) is called for each
    row. capture: on a GPU, run the steps as CUDA graphs.
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
    steps = TrainingSteps(model, optimizer, training, settings.batch)
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


def _share_of_rate(settings: GridSettings, step: int) -> float:
    """The learning rate as a share of its peak: warm-up, constant until `hold`, then half a cosine to zero."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step <= warm:
        return step / warm
    held = max(warm, round(settings.hold * settings.steps))
    progress = max(0.0, (step - held) / max(1, settings.steps - held))
    return float(0.5 * (1 + np.cos(np.pi * progress)))


def _open_sizes(sizes: Sizes, curriculum: float, progress: float) -> int:
    """How many of the pairs, sorted by their larger set, take part; both orders of a pair are introduced together."""
    if progress >= curriculum:
        return len(sizes)
    kinds = sorted({max(pair) for pair in sizes})
    largest = kinds[int(progress / curriculum * len(kinds))]
    return sum(max(pair) <= largest for pair in sizes)


@torch.no_grad()
def accuracies(model: Stack, evaluation: Examples, size: tuple[int, int], budget: int = 2**26) -> list[float]:
    """The share of correct answers of each copy for a pair of sizes. budget: the most attention scores at a time."""
    inputs, answers = evaluation.inputs[size], evaluation.answers[size]
    copies = len(model.embedding)
    rows = max(1, budget // (copies * HEADS * inputs.shape[1] ** 2))
    right = torch.zeros(copies, device=inputs.device)
    for start in range(0, len(inputs), rows):
        part = inputs[start : start + rows].expand(copies, -1, -1)
        right += (model(part).argmax(-1) == answers[start : start + rows]).sum(1)
    return [float(value) for value in right / len(inputs)]
