"""The stacked models and the set-disjointness sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from jrt_eval.cli import cli
from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size import figure
from jrt_eval.experiments.state_size import grid as sweep
from jrt_eval.experiments.state_size.stacked import Stack, StackedAdamW, causal_attention, state_bytes
from jrt_eval.experiments.state_size.steps import Steps
from jrt_eval.kernels import reference

SMALL: dict[str, Any] = {
    "rates": (1e-2,), "seeds": (0, 1), "steps": 4, "batch": 4, "examples": 8, "evaluation_examples": 6,
    "vocabulary": 80, "limit": 32,
}  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
def test_stacked_models_are_the_same_as_models_alone(causal: bool) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (2, 3, 12)))
    both = Stack(8, 3, 40, [5, 6], causal=causal)(tokens)
    for copy, seed in enumerate((5, 6)):
        alone = Stack(8, 3, 40, [seed], causal=causal)(tokens[copy : copy + 1])
        torch.testing.assert_close(both[copy : copy + 1], alone, atol=1e-5, rtol=1e-4)


def test_the_last_position_sees_the_same_sums_either_way() -> None:
    """The causal form works with scores, the non-causal one with the feature map: at the end both see everything."""
    causal, whole = (Stack(8, 3, 40, [0], causal=c).double() for c in (True, False))
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (model._attention(model.layers[1], x)[:, :, -1] for model in (causal, whole))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_what(causal: bool) -> None:
    model = Stack(8, 3, 40, [0], causal=causal).double()
    x = torch.randn(1, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 5] += 1
    for mixer, layer in ((model._convolution, 0), (model._attention, 1)):
        moved = (mixer(model.layers[layer], x) != mixer(model.layers[layer], changed)).any(-1)[0, 0]
        assert bool(moved[:5].any()) is not causal
        assert moved[5:7].all() if causal else moved[4:7].all()


def test_the_optimizer_is_adamw_for_each_copy() -> None:
    model = Stack(4, 2, 20, [0, 1], causal=True)
    alone = [Stack(4, 2, 20, [seed], causal=True) for seed in (0, 1)]
    rates = (1e-2, 3e-3)
    mine = StackedAdamW(model, weight_decay=0.1)
    theirs = []
    for one, rate in zip(alone, rates, strict=True):
        norms = [p for name, p in one.named_parameters() if "norm" in name]
        others = [p for name, p in one.named_parameters() if "norm" not in name]
        groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.1}]
        theirs.append(torch.optim.AdamW(groups, lr=rate))
    tokens = torch.arange(10).repeat(2, 1, 1)
    for _ in range(3):
        model(tokens).square().sum().backward()
        mine.step(torch.tensor(rates))
        for copy, (one, optimizer) in enumerate(zip(alone, theirs, strict=True)):
            optimizer.zero_grad()
            one(tokens[copy : copy + 1]).square().sum().backward()
            optimizer.step()
    for copy, one in enumerate(alone):
        for got, expected in zip(model.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(got[copy : copy + 1], expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("length", [1, 32, 45])
def test_causal_attention_is_the_reference(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (
        [torch.randn(2, length, 3, d, dtype=torch.float64, generator=generator.manual_seed(d)) for d in (2, 2, 5)]
        for _ in range(2)
    )
    for tensor in (*mine, *theirs):
        tensor.requires_grad_()
    y, expected = causal_attention(*mine), reference.taylor_linear_attention(*theirs, None, None, None)[0]
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for tensor, other in zip(mine, theirs, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, other.grad)


def test_marks_tell_the_sets_apart() -> None:
    """With the order of embeddings' sums lost (no convolution), only marks tell on which side of [2] a token stood."""
    tokens = torch.tensor([[1, 9, 2, 7, 3]]).expand(1, -1, -1)
    plain, marked = (Stack(8, 3, 40, [0], causal=True, marked=m, sharp=2.0) for m in (False, True))
    assert plain.marks is None
    assert marked.marks is not None
    assert (marked.last_norm == 2).all()
    with torch.no_grad():
        marked.marks.zero_()
        torch.testing.assert_close(plain(tokens), marked(tokens))
        marked.marks[:, 1] = 1
        before = marked(tokens)
        marked.marks[:, 0] = -1
    assert not torch.allclose(before, marked(tokens))


def test_a_step_reads_its_examples_and_rates_from_its_own_tensors() -> None:
    """What a captured step does on a GPU: the same tensors, filled anew, and a count that is a tensor."""
    settings = sweep.Settings(**SMALL)
    examples = sweep.make_examples(settings.training_sizes, 8, 0, 80, torch.device("cpu"))
    model = Stack(8, 2, 80, [0, 1], causal=True)
    steps = Steps(model, StackedAdamW(model), examples, 4)
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
    settings = sweep.Settings(**SMALL)
    examples = sweep.make_examples(settings.training_sizes, 8, 0, 80, torch.device("cpu"))
    model = Stack(8, 2, 80, [0, 1], causal=True)
    steps = Steps(model, StackedAdamW(model), examples, 4)
    before = [tensor.clone() for tensor in steps.optimizer.state()]

    def fails(sizes: object) -> None:
        steps.rates.fill_(1e-2)
        steps._step((4, 16))  # a warm-up
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(steps, "_captured", fails)
    assert not steps.capture(settings.training_sizes)
    assert "not captured as a CUDA graph (operation not permitted when stream is capturing)" in caplog.text
    for tensor, was in zip(steps.optimizer.state(), before, strict=True):
        assert torch.equal(tensor, was)


def test_a_capture_warms_up_records_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things, with a graph that calls the step in place of replaying it."""

    class Graph:
        def __init__(self) -> None:
            made.append(self)

        def replay(self) -> None:
            seen.append("replay")
            Steps._step(steps, size)

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
    settings, size = sweep.Settings(**SMALL), (4, 16)
    examples = sweep.make_examples(settings.training_sizes, 8, 0, 80, torch.device("cpu"))
    results = []
    for capture in (True, False):
        model = Stack(8, 2, 80, [0, 1], causal=True)
        steps = Steps(model, StackedAdamW(model), examples, 4)
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


def test_a_rate_is_held_and_falls() -> None:
    settings = sweep.Settings(**{**SMALL, "steps": 100, "warmup": 0.1, "hold": 0.5})
    shares = [sweep._share_of_rate(settings, step) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares[9:50] == [1.0] * 41
    assert shares[49:] == sorted(shares[49:], reverse=True)
    assert shares[-1] == pytest.approx(0)


def test_pairs_take_the_place_of_the_papers() -> None:
    settings = sweep.Settings(**{**SMALL, "pairs": ((2, 16), (16, 2), (4, 8))})
    assert settings.training_sizes == settings.evaluation_sizes == ((2, 16), (16, 2), (4, 8), (8, 4))


def test_points_from_before_a_setting_existed_are_taken(tmp_path: Path) -> None:
    found = {"settings": {key: list(v) if isinstance(v, tuple) else v for key, v in SMALL.items()}}
    sweep._same(found, sweep.Settings(**SMALL), tmp_path)
    with pytest.raises(UserError, match=r"other settings \(marked\)"):
        sweep._same(found, sweep.Settings(**SMALL, marked=True), tmp_path)


def test_state_bytes_by_hand() -> None:
    # two attentions: 2 heads, 1 + 2 + 3 features, 4 values and the sum of the features; two convolutions: 2 inputs of 8
    assert state_bytes(8, 2) == 4 * (2 * (2 * 6 * 5) + 2 * (2 * 8))


def test_a_curriculum_opens_small_sets_first() -> None:
    sizes = tuple(sorted(sweep.Settings(**{**SMALL, "vocabulary": 300, "limit": 128}).training_sizes, key=max))
    opened = [sweep._open_sizes(sizes, 0.5, p) for p in (0.0, 0.2, 0.3, 0.49, 0.5, 1.0)]
    assert opened == sorted(opened)
    assert sizes[: opened[0]] == ((4, 16), (16, 4))
    assert opened[-1] == opened[-2] == len(sizes)
    assert sweep._open_sizes(sizes, 0.0, 0.0) == len(sizes)


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = sweep.Settings(**SMALL)
    points = [sweep.Point(8, 2, True), sweep.Point(8, 2, False)]
    run = lambda: sweep.run(points, settings, tmp_path, torch.device("cpu"), lambda *_: 0, lambda _: 0)  # noqa: E731
    assert run() == 2
    path = tmp_path / "points" / f"{points[1].name}.json"
    whole = json.loads(path.read_text())
    path.unlink()
    (tmp_path / "points" / "cut.part").write_text("{")  # what a kill may leave
    assert run() == 1
    again = json.loads(path.read_text())
    assert again["losses"] == whole["losses"]
    assert again["scores"] == whole["scores"]
    assert run() == 0
    with pytest.raises(UserError, match=r"other settings \(steps\)"):
        sweep.run(points, sweep.Settings(**{**SMALL, "steps": 5}), tmp_path, torch.device("cpu"), lambda *_: 0, print)


def test_frame_and_figure(tmp_path: Path) -> None:
    settings = sweep.Settings(**SMALL)
    sweep.run([sweep.Point(8, 2, True)], settings, tmp_path, torch.device("cpu"), lambda *_: 0, lambda _: 0)
    frame = figure.frame(sweep.results(tmp_path))
    assert len(frame) == len(settings.evaluation_sizes) * 2
    assert frame["accuracy"].between(0, 1).all()
    means = figure.by_order(frame)
    assert means["best"].sum() == 1
    best = means.query("best").iloc[0]
    pairs = figure.by_pair(frame)
    assert len(pairs) == len(settings.evaluation_sizes) / 2
    assert pairs["difference"].mean() == pytest.approx(best["difference"])
    assert (pairs["guess"] == 1 / pairs["shorter"]).all()
    assert figure.pair_summary(frame).count("\n") == len(pairs)
    (line,) = figure.summary(frame).splitlines()[1:]
    assert line.endswith(f"{means['difference'].mean():+.3f}{f'{(means.difference > 0).sum()} of 2':>18}")
    figure.draw(frame, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_command_line_and_bad_input(tmp_path: Path) -> None:
    base = ["synthetic", "-o", str(tmp_path), "--device", "cpu"]
    small = ["--steps", "2", "--batch", "2", "--examples", "4", "--limit", "32", "--rates", "1e-3", "--seeds", "0"]
    shape = ["--widths", "8", "--features", "2", "--only", "causal"]
    result = CliRunner().invoke(cli, [*base, *small, *shape], catch_exceptions=False)
    assert "1 points" in result.output
    assert (tmp_path / "scores.csv").is_file()
    marked = ["--preset", "marked", "--pairs", "2x4", *small, *shape]
    base[2] = str(tmp_path / "marked")
    CliRunner().invoke(cli, [*base, *marked], catch_exceptions=False)
    ran = json.loads((tmp_path / "marked" / "points" / "width8-features2-causal.json").read_text())["settings"]
    assert (ran["marked"], ran["pairs"], ran["vocabulary"]) == (True, [[2, 4]], 100)
    with pytest.raises(UserError, match=r"other settings \(marked\)"):
        CliRunner().invoke(cli, [*base, *marked, "--unmarked"], catch_exceptions=False)
    base[2] = str(tmp_path)
    for wrong, says in [
        (["--widths", "7", "--features", "2"], "7 does not split into 2 heads"),
        (["--widths", "8,x"], "is no list such as 4,8,16"),
        (["--pairs", "4-16"], "is no list such as 4x16,4x64"),
        (["--pairs", "0x16"], "at least one element"),
        (["--pairs", "4x4"], "must differ in size"),
        (["--sharp", "nan"], "sharp: must be above 0"),
        (["--hold", "1"], "hold: a share of the steps"),
        (["--beta2", "1"], "beta2: must be between"),
        (["--limit", "8"], "no pair of sets"),
        (["--vocabulary", "40"], "for a set of 128; lower limit"),
        (["--curriculum", "2"], "a share of the steps"),
        (["--device", "abacus", *small, *shape], "--device abacus"),
    ]:
        with pytest.raises(UserError) as raised:
            CliRunner().invoke(cli, [*base, *wrong], catch_exceptions=False)
        assert says in str(raised.value)


def test_a_shorter_sweep_learns(tmp_path: Path) -> None:
    """The loss of sets of 4 and 16 falls well under that of guessing among the vocabulary."""
    settings = sweep.Settings(
        rates=(4e-3,), seeds=(0,), steps=120, batch=32, examples=2000, vocabulary=80, limit=32, curriculum=1.0
    )
    examples = sweep.make_examples(settings.training_sizes, 2000, 0, 80, torch.device("cpu"))
    _, copies, history = sweep.train_point(
        sweep.Point(16, 4, False), settings, examples, torch.device("cpu"), lambda *_: 0
    )
    assert copies == [(4e-3, 0)]
    assert np.mean([loss for _, loss in history[-10:]]) < 0.9 * history[0][1]
