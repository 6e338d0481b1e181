"""Decoding through CUDA graphs: the bookkeeping with a recorder that runs on the CPU, the graphs themselves where a GPU is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import mamba_layout, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import jrt_eval
from jrt_eval.models import JRTModel
from jrt_eval.models.recurrent import graphs as graphs_module
from jrt_eval.models.recurrent.graphs import Graphs, leaves
from jrt_eval.models.recurrent.model import RecurrentModel

PROMPTS = [[5, 7, 9] * 11, [3, 8], list(range(1, 40))]
RECURRENT = ["jrt", "based", "based_decay"]


class Recorder:
    """What `graphs.record` does, as far as a CPU can: every replay writes the same logits."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1
        run()
        result = run().clone()

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(run())

        return replay


def generated(model: JRTModel, prompts: list[list[int]], n: int = 12, **kwargs: Any) -> Any:
    return model.generate(prompts, max_new_tokens=n, return_dict_in_generate=True, output_scores=True, **kwargs)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    for kind in (JRTModel, RecurrentModel):
        monkeypatch.setattr(kind, "runs_ahead", property(lambda self: True))


def mamba(folder: Path, version: int) -> Any:
    mamba_layout(folder, version)
    return jrt_eval.load_model(folder, device="cpu")


@pytest.mark.parametrize("family", [*RECURRENT, "mamba", "mamba2"])
def test_tokens_and_scores_are_those_of_plain_steps(family: str, ahead: None, tmp_path: Path) -> None:
    if family in RECURRENT:
        model, plain = tiny(family), tiny(family)
    else:
        model, plain = (mamba(tmp_path, 2 if family == "mamba2" else 1) for _ in range(2))
    plain.cuda_graphs = False
    recorder = Recorder()
    model._graphs = Graphs(recorder)
    for prompts, options in (
        (PROMPTS, {}),
        (PROMPTS[::-1], {}),
        (PROMPTS, {"repetition_penalty": 1.3}),
        (PROMPTS, {"eos_token_id": list(range(0, 251, 3))}),
    ):
        got, want = generated(model, prompts, **options), generated(plain, prompts, **options)
        assert got.tokens == want.tokens
        assert len(got.scores) == len(want.scores)
        for mine, theirs in zip(got.scores, want.scores, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert recorder.recordings == 1
    assert recorder.replays >= 3 * 11


def test_running_ahead_changes_nothing(ahead: None) -> None:
    for family in [*RECURRENT, "attn"]:
        model = tiny(family)
        model.cuda_graphs = False
        eos = list(range(0, 251, 5))
        got = [generated(model, PROMPTS, n, eos_token_id=eos).tokens for n in (1, 2, 12)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JRTModel, "runs_ahead", property(lambda self: False))
            assert [generated(model, PROMPTS, n, eos_token_id=eos).tokens for n in (1, 2, 12)] == got


def test_what_is_recorded_when(ahead: None) -> None:
    model, recorder = tiny("jrt"), Recorder()
    model._graphs = Graphs(recorder)
    generated(model, PROMPTS, graphs_module.WORTH_RECORDING)  # one step less
    assert recorder.recordings == 0
    for expected, prompts in ((1, PROMPTS), (2, PROMPTS[:2]), (2, PROMPTS), (3, PROMPTS[:1]), (4, PROMPTS[:2])):
        generated(model, prompts)
        assert recorder.recordings == expected
    generated(model, PROMPTS[:2], 2)  # a recording that is there serves short continuations too
    assert recorder.recordings == 4
    before = recorder.replays
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generated(model, PROMPTS[:2])
    assert recorder.recordings == 5
    model.to(torch.bfloat16)  # other weights
    generated(model, PROMPTS[:2])
    assert recorder.recordings == 6
    assert recorder.replays > before
    softmax = tiny("attn")
    softmax._graphs = Graphs(recorder)
    generated(softmax, PROMPTS)
    assert recorder.recordings == 6
    assert copy.deepcopy(model)._graphs._kept == {}


def test_inference_mode_and_without(ahead: None) -> None:
    model = tiny("based")
    model._graphs = Graphs(Recorder())
    with torch.inference_mode():
        first = generated(model, PROMPTS).tokens
    assert generated(model, PROMPTS).tokens == first


def test_a_failed_recording_is_logged_once(ahead: None, caplog: pytest.LogCaptureFixture) -> None:
    def fails(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        run()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    model, plain = tiny("jrt"), tiny("jrt")
    plain.cuda_graphs = False
    model._graphs = Graphs(fails)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert generated(model, PROMPTS).tokens == generated(plain, PROMPTS).tokens
    lines = [record.message for record in caplog.records]
    assert lines == ["decoding without CUDA graphs: CUDA error: operation not permitted when stream is capturing"]


class NoWait(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", RECURRENT)
def test_a_step_can_be_recorded(family: str) -> None:
    """Every state stays where it is, and nothing of it is read on the host."""
    model = tiny(family)
    model.backend = "torch"
    with torch.no_grad():
        _, state = model.prefill(PROMPTS)
        held = leaves(state)
        assert held is not None
        places = [x.data_ptr() for x in held]
        before = [x.clone() for x in held]
        with NoWait():
            model.step(torch.tensor([1, 2, 3]), state)
    after = leaves(state)
    assert after is not None
    assert [x.data_ptr() for x in after] == places
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", RECURRENT)
def test_graphs_on_a_gpu(family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(family).to("cuda", dtype)
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[:2], PROMPTS):
        model.cuda_graphs = False
        want = generated(model, prompts, 30)
        model.cuda_graphs = True
        with caplog.at_level(logging.INFO, logger="jrt_eval.models.recurrent.graphs"):
            got = generated(model, prompts, 30)
        assert got.tokens == want.tokens
        for mine, theirs in zip(got.scores, want.scores, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert [r.levelname for r in caplog.records] == ["INFO", "INFO"], [r.message for r in caplog.records]
    with torch.autocast("cuda", dtype=torch.bfloat16):  # weights converted inside the graph
        got = generated(model, PROMPTS, 30)
        model.cuda_graphs = False
        assert got.tokens == generated(model, PROMPTS, 30).tokens
