"""Training steps, launched one by one or captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from state_size_helpers import CPU, SMALL

from jrt_eval.experiments.state_size.examples import training_examples
from jrt_eval.experiments.state_size.stacked import Stack, StackedAdamW
from jrt_eval.experiments.state_size.steps import TrainingSteps


def test_a_step_reads_its_examples_and_rates_from_its_own_tensors() -> None:
    """What a captured step does on a GPU: the same tensors, filled anew, and a count that is a tensor."""
    examples = training_examples(SMALL, CPU)
    model = Stack(8, 2, 80, [0, 1], causal=True)
    steps = TrainingSteps(model, StackedAdamW(model), examples, 4)
    kept = [steps.index, steps.rates, steps.losses, *steps.optimizer.state(), *model.parameters()]
    places = [tensor.data_ptr() for tensor in kept]
    for step in range(1, 4):
        before = steps.optimizer.flat.clone()
        steps.run((4, 16), torch.randint(8, (2, 4)), torch.tensor([1e-3, 0.0]))
        assert [float(power) for power in steps.optimizer.powers] == pytest.approx([0.9**step, 0.999**step])
        moved = [
            bool((p[copy] != q[copy]).any()) for copy in (0, 1) for p, q in [(model.embedding, _like(before, model))]
        ]
        assert moved == [True, False]
    assert [tensor.data_ptr() for tensor in kept] == places
    assert all(p.grad is None for p in model.parameters())


def _like(flat: torch.Tensor, model: Stack) -> torch.Tensor:
    """The embeddings in a copy of the flat parameters: they come first."""
    assert next(iter(model.parameters())) is model.embedding
    return flat[: model.embedding.numel()].view_as(model.embedding)


def test_without_a_capture_the_models_are_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    examples = training_examples(SMALL, CPU)
    model = Stack(8, 2, 80, [0, 1], causal=True)
    steps = TrainingSteps(model, StackedAdamW(model), examples, 4)
    before = [tensor.clone() for tensor in steps.optimizer.state()]

    def fails(sizes: object) -> None:
        steps.rates.fill_(1e-2)
        steps._step((4, 16))  # a warm-up
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(steps, "_captured", fails)
    assert not steps.capture(SMALL.training_sizes)
    assert (
        "training without CUDA graphs, since a step could not be captured (operation not permitted when stream is capturing)"
        in caplog.text
    )
    for tensor, was in zip(steps.optimizer.state(), before, strict=True):
        assert torch.equal(tensor, was)


def test_a_capture_warms_up_records_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things, with a graph that calls the step in place of replaying it."""

    class Graph:
        def __init__(self) -> None:
            made.append(self)

        def replay(self) -> None:
            seen.append("replay")
            TrainingSteps._step(steps, size)

    class Stream:
        def wait_stream(self, other: object) -> None:
            seen.append("wait")

    @contextmanager
    def recording(graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert pool == "pool"
        seen.append("capture")
        yield
        seen.append("captured")

    made: list[Graph] = []
    seen: list[str] = []
    for name, value in {
        "CUDAGraph": Graph, "Stream": Stream, "graph": recording, "graph_pool_handle": lambda: "pool",
        "stream": lambda _: nullcontext(), "current_stream": Stream,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    size = (4, 16)
    examples = training_examples(SMALL, CPU)
    results = []
    for capture in (True, False):
        model = Stack(8, 2, 80, [0, 1], causal=True)
        steps = TrainingSteps(model, StackedAdamW(model), examples, 4)
        if capture:
            real = steps._step
            monkeypatch.setattr(steps, "_step", lambda size, real=real: (seen.append("step"), real(size)))
            assert steps.capture([size])
            assert seen == ["wait", *["step"] * 3, "wait", "capture", "step", "captured"]
            assert len(made) == 1
        for start in (0, 4):
            steps.run(size, torch.arange(start, start + 4).repeat(2, 1), torch.tensor([1e-2, 2e-2]))
        results.append([*steps.optimizer.state(), steps.losses])
    assert seen[-2:] == ["replay", "replay"]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
