"""Recorded decode steps of transformers' models: results, reuse and refusals. On a CPU a function stands for the CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jrt_eval.models.batching import Batching
from jrt_eval.models.recorded_decoding import RecordedDecoding
from jrt_eval.models.transformers import TransformersModel

PADDED = Batching("padded", "padded", "given")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]


class Recorder:
    """Stands for the recording of a CUDA graph; counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        run(), run()  # a graph's recording runs the step first, too
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            return run()

        return replay


def hybrid() -> Any:
    """Mamba-2 and attention, in one of transformers' classes."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    config = transformers.BambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, intermediate_size=48, attn_layer_indices=[1],
        num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    inner = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in inner.parameters():
            p.mul_(3 if p.dim() > 1 else 1)
    return inner


def attention() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4)
    ).eval()


def decode(model: Any, recorder: Any, prompts: list[list[int]], new: int = 12, **arguments: Any) -> list[list[int]]:
    """New tokens, through a recorded step."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    arguments = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **arguments}
    with torch.inference_mode(), recorder.generating(model, *ids.shape, new, arguments) as cache:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, **arguments, **cache)
    return out[:, width:].tolist()


def sliding() -> Any:
    """Attention with a sliding window, whose static cache counts tokens in Python."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@pytest.fixture(params=[hybrid, attention], ids=["hybrid", "attention"])
def inner(request: pytest.FixtureRequest) -> Any:
    return request.param()


def expected(inner: Any, prompts: list[list[int]], new: int = 12) -> list[list[int]]:
    return TransformersModel(inner, batching=PADDED, cuda_graphs=False).continue_prompts(
        prompts, new, sampling={}, stop_ids=[]
    )


def test_replayed_steps_decode_what_plain_steps_decode(inner: Any) -> None:
    recorder = Recorder()
    recorded = RecordedDecoding(recorder)
    assert decode(inner, recorded, PROMPTS) == expected(inner, PROMPTS)
    assert recorder.recorded == 1
    assert recorder.replayed >= 11
    assert "forward" not in vars(inner)
    others = [p[::-1] for p in PROMPTS]
    assert decode(inner, recorded, others) == expected(inner, others)
    assert recorder.recorded == 1, "a batch of the same size uses the recorded step again"
    assert decode(inner, recorded, others[:2]) == expected(inner, others[:2])
    assert recorder.recorded == 2


def test_a_recording_that_computes_something_else_is_not_used(inner: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(Recorder):
        """Replays the first result for ever."""

        def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
            self.recorded += 1
            first = run()
            return lambda: first

    recorder = Forgetful()
    recorded = RecordedDecoding(recorder)
    for _ in range(2):
        assert decode(inner, recorded, PROMPTS) == expected(inner, PROMPTS)
    assert recorder.recorded == 1
    assert "computes other logits" in caplog.text


def test_a_step_that_cannot_be_recorded_is_not_recorded_again(inner: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
            self.recorded += 1
            run()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    recorder = Failing()
    recorded = RecordedDecoding(recorder)
    for _ in range(2):
        assert decode(inner, recorded, PROMPTS) == expected(inner, PROMPTS)
    assert recorder.recorded == 1
    assert "operation not permitted" in caplog.text and "more" not in caplog.text


def test_a_cache_that_does_not_fit_is_given_back(caplog: pytest.LogCaptureFixture) -> None:
    inner, recorded = attention(), RecordedDecoding(Recorder())

    def run() -> None:
        with recorded.generating(inner, 3, 7, 12, {}) as cache:
            assert cache
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        run()
    assert not recorded._kept and "forward" not in vars(inner)
    assert "does not fit" in caplog.text
    with recorded.generating(inner, 3, 7, 12, {}) as cache:
        assert cache == {}


def test_a_cache_with_state_in_python_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    inner, recorder = sliding(), Recorder()
    recorded = RecordedDecoding(recorder)
    for _ in range(2):
        assert decode(inner, recorded, PROMPTS) == expected(inner, PROMPTS)
    assert recorder.recorded == 0
    assert "outside of the cache's tensors" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "new"),
    [({"num_beams": 2}, 12), ({"use_cache": False}, 12), ({"do_sample": True, "num_return_sequences": 2}, 12), ({}, 4)],
)
def test_searches_of_another_kind_and_short_ones_are_not_recorded(arguments: dict[str, Any], new: int) -> None:
    recorder = Recorder()
    decode(attention(), RecordedDecoding(recorder), PROMPTS, new, **arguments)
    assert recorder.recorded == 0


def test_a_class_that_differs_on_a_static_cache_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, recorder = attention(), Recorder()
    from transformers.cache_utils import StaticLayer

    update = StaticLayer.update

    def wrong(self: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys, values * 2, *args, **kwargs)

    monkeypatch.setattr(StaticLayer, "update", wrong)
    assert decode(inner, RecordedDecoding(recorder), PROMPTS) == expected(inner, PROMPTS)
    assert recorder.recorded == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_decode_what_plain_steps_decode(inner: Any) -> None:
    inner = inner.to("cuda")
    model = TransformersModel(inner, batching=PADDED)
    for prompts in (PROMPTS, [p[::-1] for p in PROMPTS]):
        assert model.continue_prompts(prompts, 12, sampling={}, stop_ids=[]) == expected(inner, prompts)
    assert model._recorded._kept, "the step was recorded"
