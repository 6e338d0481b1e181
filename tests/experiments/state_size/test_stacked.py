"""Models trained as one stack are the same as models trained alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jrt_eval.experiments.state_size.stacked import Stack, StackedAdamW, causal_attention, state_bytes
from jrt_eval.kernels.taylor_linear_attention import reference


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


def test_state_bytes_by_hand() -> None:
    # two attentions: 2 heads, 1 + 2 + 3 features, 4 values and the sum of the features; two convolutions: 2 inputs of 8
    assert state_bytes(8, 2) == 4 * (2 * (2 * 6 * 5) + 2 * (2 * 8))
