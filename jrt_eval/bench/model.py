"""A JRT-RNN of 360M parameters' shape, end to end: tokens per second, and how much of it the mixers take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from jrt_eval import kernels
from jrt_eval.bench.timing import synchronize
from jrt_eval.kernels.registry import FUSED, OPERATORS
from jrt_eval.models.recurrent import model as models

# The shape of JRT-360M-30B (random weights): 26 layers, of which five prefix linear attention and five sliding window.
JRT_360M: dict[str, Any] = {
    "n_embd": 1024,
    "n_head": 16,
    "n_layer": 26,
    "n_inner": 2048,
    "n_positions": 0,
    "max_position_embeddings": 0,
    "vocab_size": 50257,
    "pad_vocab_size_multiple": 8,
    "activation_function": "swiglu",
    "rms_norm": True,
    "residual_in_fp32": True,
    "rotary_emb_fraction": 1,
    "qkv_proj_bias": False,
    "out_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "tie_word_embeddings": True,
    "mixer": {"_target_": "BaseConv", "expand_proj": 4, "use_bias": True},
    "alt_mixer": {"_target_": "PrefixLinearAttention", "num_heads": 16, "feature_dim": 16, "enc_length": 1024},
    "alt_mixer_layers": [1, 6, 11, 16, 21],
    "alt_mixer_2": {"_target_": "SlidingAttention", "num_heads": 16, "window_size": 128},
    "alt_mixer_2_layers": [2, 7, 12, 17, 22],
}


@dataclass(frozen=True)
class Run:
    """Medians of one backend."""

    backend: str
    prefill_seconds: float
    operator_seconds: float  # of the prefill, in jrt_eval.kernels
    mixer_seconds: float  # of the prefill, in the mixers, projections included
    step_seconds: float


@contextmanager
def _timed(device: torch.device, total: dict[str, float], network: Any) -> Iterator[None]:
    """Adds up the time inside the mixers, and inside the operators they call."""
    depth = [0]
    kept = {name: getattr(kernels, name) for name in (*OPERATORS, *FUSED)}

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
    for layer in network.transformer.layers:
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
) -> list[Run]:
    """Prefill of one prompt of `length` tokens and `steps` decode steps, for each backend, interleaved."""
    network = models.from_config(config, device=device, seed=0).eval()
    ids = torch.randint(0, config["vocab_size"], (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    seen: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in backends}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name in backends:
                network.backend = name
                total = {"operators": 0.0, "mixers": 0.0}
                synchronize(device)
                start = time.perf_counter()
                with _timed(device, total, network):
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
        Run(name, *(sorted(column)[len(column) // 2] for column in zip(*seen[name], strict=True))) for name in backends
    ]
