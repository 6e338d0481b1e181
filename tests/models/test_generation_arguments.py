"""Generation arguments for transformers' classes: what is passed on, and one line for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jrt_eval.errors import UserError
from jrt_eval.models.batching import Batching
from jrt_eval.models.generation_arguments import checked
from jrt_eval.models.transformers import TransformersModel

PROMPTS = [[5, 6, 7], [9, 10]]


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, intermediate_size=48, num_attention_heads=4
    )
    return TransformersModel(LlamaForCausalLM(config).eval(), batching=Batching("padded", "padded", "given"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beam": 2}, r"'num_beam' is unknown .*did you mean 'num_beams'"),
        ({"attention_mask": 1}, "'attention_mask' is unknown"),
        ({"num_beams": 2, "num_return_sequences": 2}, "num_return_sequences: one text is evaluated per prompt"),
        ({"num_beams": "two"}, "num_beams='two' must be a number"),
        ({"do_sample": "maybe"}, "do_sample='maybe' must be a number, true or false"),
        ({"eos_token_id": 5}, "eos_token_id is set by jrt-eval: use until"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is set by jrt-eval"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: .*strictly positive"),
        ({"cache_implementation": "none"}, "cache_implementation='none': "),
    ],
)
def test_arguments_that_cannot_be_used_get_one_line(
    model: TransformersModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model.continue_prompts(PROMPTS, 3, sampling=arguments, stop_ids=[])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0}, {"do_sample": True, "temperature": 0.0}, {"pad_token_id": 3}, {"top_p": None}]
)
def test_what_is_greedy_search(model: TransformersModel, arguments: dict[str, Any]) -> None:
    greedy = model.continue_prompts(PROMPTS, 3, sampling={}, stop_ids=[])
    assert model.continue_prompts(PROMPTS, 3, sampling=arguments, stop_ids=[]) == greedy


def test_sampling_arguments_reach_generate() -> None:
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 1}
    assert checked(given) == {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
