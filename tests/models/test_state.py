"""Prefill and decode are one function of state, for every mixer and for whole models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, PACKAGE, mamba_layout, released_config, tiny

from jrt_eval.models import from_config
from jrt_eval.models.recurrent.config import parse_config
from jrt_eval.models.recurrent.mixers import Call, ShortConvolutionConfig

SPLITS = [[37], [30, 7], [25, 1, 11], [26, 10, 1]]
# Shapes away from the released ones: odd windows and rotary dims, wide convolutions, other feature dims, biases.
OTHERS: dict[str, dict[str, Any]] = {
    "jrt": {"rotary_emb_fraction": 0.4, "pad_vocab_size_multiple": 1},
    "based": {"mixer": {"_target_": PACKAGE + "BaseConvWithSiLU4", "kernel_size": 5, "expand_proj": 2}},
    "based_decay": {"qkv_proj_bias": True, "out_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True},
    "attn": {"rotary_emb_fraction": 0.43, "rms_norm": None, "n_inner": None, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["usual", "other"])
def test_any_split_of_a_prefill(family: str, shape: str) -> None:
    model = tiny(family, **(OTHERS[family] if shape == "other" else {}))
    ids = torch.randint(0, 251, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        assert whole.logits.std() > 0.1
        for split in SPLITS:
            state, logits = None, []
            for part in ids.split(split, 1):
                out = model(part, state=state)
                state, logits = out.state, [*logits, out.logits]
            torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=0, atol=1e-4)
            assert state is not None
            assert torch.equal(state.length, torch.tensor([37, 37]))


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_continue_a_prefill(family: str) -> None:
    model = tiny(family, **OTHERS[family])
    ids = torch.randint(0, 251, (2, 60), generator=torch.Generator().manual_seed(2))
    start = 25 if family == "jrt" else 1  # what the encoder reads, it reads at once
    with torch.no_grad():
        whole = model(ids).logits
        state = model(ids[:, :start]).state
        held = state.nbytes()
        for i in range(start, 60):
            torch.testing.assert_close(model.step(ids[:, i], state), whole[:, i], rtol=0, atol=1e-4)
        if family != "attn":
            assert state.nbytes() == held  # the ring, the sums and the convolution's inputs do not grow


def test_steps_from_nothing_are_iterate() -> None:
    """Single steps from the first token on are the parallel form with nothing encoded."""
    model = tiny("jrt")
    ids = torch.randint(0, 251, (1, 20))
    with torch.no_grad():
        none = torch.zeros(1, dtype=torch.int64)
        whole = model(ids, encoder_lengths=none).logits
        state = model(ids[:, :1], encoder_lengths=none).state
        for i in range(1, 20):
            torch.testing.assert_close(model.step(ids[:, i], state), whole[:, i], rtol=0, atol=1e-4)
        assert not torch.allclose(whole[:, -1], model(ids).logits[:, -1], atol=1e-2)


@pytest.mark.parametrize("layer", [0, 1, 2, 3], ids=["convolution", "linear", "window", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_mixer_by_splits_and_steps(layer: int, dtype: torch.dtype) -> None:
    config = parse_config(released_config("attn" if layer == 3 else "based_decay"))
    torch.manual_seed(3)
    mixer_config = config.mixers[layer]
    if isinstance(mixer_config, ShortConvolutionConfig):
        mixer_config = replace(mixer_config, conv_bias=True)
    mixer = mixer_config.build(48).to(dtype).eval()
    decay = torch.tensor([0.75, 0.875, 0.9, 0.99])
    x = torch.randn(2, 33, 48).to(dtype)
    atol = 1e-4 if dtype == torch.float32 else 3e-2

    def at(start: int, stop: int) -> Call:
        return Call(torch.arange(start, stop).expand(2, -1), backend="torch", decay=decay)

    with torch.no_grad():
        whole, _ = mixer(x, None, at(0, 33))
        assert whole.dtype == dtype
        first, state = mixer(x[:, :14], None, at(0, 14))
        rest, _ = mixer(x[:, 14:], state, at(14, 33))
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=atol)
        for i in range(14, 33):  # the state was left as it was by the second prefill
            y = mixer.step(x[:, i], state, at(i, i + 1))
            torch.testing.assert_close(y, whole[:, i], rtol=0, atol=atol)
        parts = (
            [state] if isinstance(state, torch.Tensor) else list(vars(state).values()) if layer == 3 else list(state)
        )
        if layer in (0, 1):
            assert all(part.dtype == torch.float32 for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_does_not_count(family: str) -> None:
    model = tiny(family)
    ids = torch.randint(0, 251, (3, 50))
    lengths = torch.tensor([50, 27, 3])
    with torch.no_grad():
        batch = model(ids, lengths=lengths)
        after = model.step(ids[:, 0], batch.state)
        for row, n in enumerate(lengths.tolist()):
            alone = model(ids[row : row + 1, :n])
            torch.testing.assert_close(batch.logits[row, :n], alone.logits[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(after[row], model.step(ids[row : row + 1, 0], alone.state)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_size_is_what_a_state_holds(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        state = model(torch.zeros(1, 40, dtype=torch.int64)).state
    assert model.state_size(40) == state.nbytes()
    assert (model.state_size(4000) == model.state_size(40)) == (family != "attn")


@pytest.mark.parametrize("version", [1, 2])
def test_mamba_state_does_not_grow(tmp_path: Any, version: int) -> None:
    import jrt_eval

    mamba_layout(tmp_path, version)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    # layers * (inner * d_state + convolved channels * (d_conv - 1)) float32
    channels = 64 if version == 1 else 64 + 2 * 16
    assert model.state_size(100) == model.state_size(5000) == 2 * (64 * 16 + channels * 3) * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(family: str, dtype: torch.dtype) -> None:
    model = tiny(family)
    ids = torch.randint(0, 251, (2, 40))
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(ids)
        half = model.to(dtype)(ids)
    for out in (mixed, half):
        assert out.logits.dtype == torch.float32
        assert (out.logits - exact).std() < 0.05 * exact.std()
        if family == "based":
            linear = out.state.layers[1]
            assert linear.kv.dtype == linear.k.dtype == torch.float32


@pytest.mark.parametrize("family", ["jrt", "based_decay"])
def test_gradients_reach_every_parameter(family: str) -> None:
    model = from_config(released_config(family), seed=1, backend="torch").train()
    model(torch.randint(0, 251, (2, 30))).logits.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
