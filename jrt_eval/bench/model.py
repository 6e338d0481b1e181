"""Prefill and decode steps of a whole model: tokens per second, and the share of the operators and of the mixers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from jrt_eval import kernels
from jrt_eval.bench.timing import synchronize
from jrt_eval.kernels.dispatch import OPERATORS
from jrt_eval.models.recurrent.mamba import MambaModel, read_mamba_ssm
from jrt_eval.models.recurrent.model import RecurrentModel, from_config


@dataclass(frozen=True)
class ModelTiming:
    """Medians of one backend, in seconds."""

    backend: str
    prefill_seconds: float
    operator_seconds: float  # part of the prefill: the functions of jrt_eval.kernels
    mixer_seconds: float  # part of the prefill: the mixers, with their projections
    step_seconds: float


def build(config: dict[str, Any], device: torch.device) -> RecurrentModel:
    """A model of a config that `released_config` returns, in evaluation mode, with random weights."""
    if "d_model" not in config:
        return from_config(config, device=device, seed=0).eval()
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MambaModel(read_mamba_ssm(config), config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("A_log", "D", "norm.weight", "norm_f.weight")):
                weight.fill_(1)
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                weight.fill_(-4)  # time steps of about 0.02
    return network.eval()


@contextmanager
def _adding_up(device: torch.device, total: dict[str, float], network: RecurrentModel) -> Iterator[None]:
    """Adds the time spent in the mixers, and in the operators that they call, to `total`."""
    depth = [0]
    kept = {
        name: getattr(kernels, name) for functions in OPERATORS.values() for name in functions if hasattr(kernels, name)
    }

    def watch(run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            depth[0] += 1
            result = run(*args, **kwargs)
            depth[0] -= 1
            synchronize(device)
            if depth[0] == 0:
                total["operators"] += time.perf_counter() - start
            return result

        return watched

    started: list[float] = []

    def before(*_: Any) -> None:
        synchronize(device)
        started.append(time.perf_counter())

    def after(*_: Any) -> None:
        synchronize(device)
        total["mixers"] += time.perf_counter() - started.pop()

    hooks = []
    for layer in network._layers:
        hooks += [layer.mixer.register_forward_pre_hook(before), layer.mixer.register_forward_hook(after)]
    for name, run in kept.items():
        setattr(kernels, name, watch(run))
    try:
        yield
    finally:
        for name, run in kept.items():
            setattr(kernels, name, run)
        for hook in hooks:
            hook.remove()


def measure(
    backends: list[str], *, length: int, steps: int, rounds: int, device: torch.device, config: dict[str, Any]
) -> list[ModelTiming]:
    """Time the prefill of one prompt of `length` tokens and `steps` decode steps, with all backends in turn, `rounds` times."""
    network = build(config, device)
    ids = torch.randint(0, config["vocab_size"], (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    seen: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in backends}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name in backends:
                network.backend = name
                total = {"operators": 0.0, "mixers": 0.0}
                synchronize(device)
                start = time.perf_counter()
                with _adding_up(device, total, network):
                    x, state = network.hidden(ids)
                synchronize(device)
                prefill = time.perf_counter() - start
                token = network.logits(x[:, -1]).argmax(-1)
                start = time.perf_counter()
                for _ in range(steps):
                    token = network.step(token, state).argmax(-1)
                synchronize(device)
                if turn:  # the first round warms up
                    step = (time.perf_counter() - start) / steps
                    seen[name].append((prefill, total["operators"], total["mixers"], step))
    return [
        ModelTiming(name, *(sorted(column)[len(column) // 2] for column in zip(*seen[name], strict=True)))
        for name in backends
    ]
