"""Arguments of `--model jrt`, end tokens, vocabulary sizes and truncation: what users of lm-eval's `hf` rely on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance
from tiny_models import byte_tokenizer, mamba_layout, spelled, tiny

from jrt_eval.errors import UserError
from jrt_eval.models import load_model, save_pretrained

NEW = 8


def generate(lm: JRTLM, prompts: list[str], **kwargs: Any) -> list[str]:
    given = {"until": [], "max_gen_toks": NEW} | kwargs
    return lm.generate_until([Instance("generate_until", {}, (p, given), i) for i, p in enumerate(prompts)], True)


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., Path]:
    """A tiny random Llama in a folder; keyword arguments go into its config."""

    def make(**config: Any) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "eos_token_id": None, "bos_token_id": None}  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**shape | config))
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 2:
                    p.mul_(40)
        model.save_pretrained(tmp_path / "llama")
        return tmp_path / "llama"

    return make


PROMPT = spelled([5, 6, 7])


def test_end_tokens_of_the_config_files_stop_a_generation(llama: Callable[..., Path]) -> None:
    folder = llama()
    tokenizer = byte_tokenizer(64, end=0)
    whole = generate(JRTLM(str(folder), tokenizer=tokenizer, device="cpu"), [PROMPT])[0]
    assert len(whole) == NEW
    second = ord(whole[2]) - 0x100
    until_there = whole[: whole.index(whole[2])]
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [0, second]}))
    assert generate(JRTLM(str(folder), tokenizer=tokenizer, device="cpu"), [PROMPT])[0] == until_there
    # named by config.json alone, and a tokenizer without an end token
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": second}))
    lm = JRTLM(str(folder), tokenizer=byte_tokenizer(64), device="cpu")
    assert generate(lm, [PROMPT])[0] == until_there
    assert lm.eot_token_id == second


def test_end_token_of_a_released_config(tmp_path: Path) -> None:
    save_pretrained(tiny("based"), tmp_path)
    tokenizer = byte_tokenizer(251)
    whole = generate(JRTLM(str(tmp_path), tokenizer=tokenizer, device="cpu"), [PROMPT])[0]
    end = ord(whole[3]) - 0x100
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": end}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert generate(JRTLM(str(tmp_path), tokenizer=tokenizer, device="cpu"), [PROMPT])[0] == whole.split(whole[3])[0]


def test_added_tokens_beyond_the_embedding(llama: Callable[..., Path]) -> None:
    """A <pad> that the embedding lacks is no reason to refuse a model, unless a prompt contains it."""
    tokenizer = byte_tokenizer(64, end=0)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert len(tokenizer) == 65
    lm = JRTLM(str(llama()), tokenizer=tokenizer, device="cpu")
    assert len(generate(lm, [PROMPT])[0]) == NEW
    with pytest.raises(UserError, match="contains the token '<pad>'"):
        generate(lm, [PROMPT + "<pad>"])
    with pytest.raises(UserError, match="contains the token '<pad>'"):
        lm.loglikelihood([Instance("loglikelihood", {}, (PROMPT, "<pad>"), 0)], True)


def test_a_module_knows_its_own_tokenizer(llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    folder = llama()
    byte_tokenizer(64, end=0).save_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    other = folder.parent / "elsewhere"
    other.mkdir()
    byte_tokenizer(20, end=3).save_pretrained(other)
    monkeypatch.chdir(other)
    lm = JRTLM(module)
    assert len(lm.tokenizer) == 64
    assert generate(lm, [PROMPT]) == generate(JRTLM(str(folder), device="cpu"), [PROMPT])
    module.config._name_or_path = module.name_or_path = ""
    with pytest.raises(UserError, match="needs its tokenizer too"):
        JRTLM(module)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}])
def test_stop_strings_in_modules_and_beams(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """A plain transformers Mamba given as a module, in a batch of different lengths, and beam search."""
    module = mamba_layout(tmp_path, 1)
    prompts = [spelled(list(range(5, 5 + n))) for n in (3, 9, 20)]
    lm = JRTLM(module, tokenizer=byte_tokenizer(251), batch_size=3)
    assert lm.model.batching.decode == "padded"
    free = generate(lm, prompts, **arguments)
    stop = free[0][3:5]
    cut = generate(lm, prompts, until=[stop], **arguments)
    assert stop not in "".join(cut)
    if not arguments:  # beams that stop early change the search
        assert cut == [text.split(stop)[0] for text in free]
    alone = JRTLM(module, tokenizer=byte_tokenizer(251), batch_size=1)
    assert generate(alone, prompts, until=[stop], **arguments) == cut


def test_truncated_log_likelihoods_are_counted(llama: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    lm = JRTLM(str(llama(max_position_embeddings=16)), tokenizer=byte_tokenizer(64, end=0), device="cpu")
    assert lm.max_length == 16
    asked = [(PROMPT * 10, spelled([9])), (PROMPT, spelled([9])), (PROMPT * 10, spelled([8]))]
    with caplog.at_level(logging.WARNING):
        lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)], True)
    assert "2 of 3 prompts exceed 16 tokens" in caplog.text
    generate(lm, [PROMPT * 10])
    assert lm.get_model_info()["model_truncated_requests"] == {"generate_until": 1, "loglikelihood": 2}
    with pytest.raises(UserError, match="raise the model argument max_length"):
        generate(lm, [PROMPT], max_gen_toks=16)


def test_a_long_context_is_the_models_own(llama: Callable[..., Path]) -> None:
    lm = JRTLM(str(llama(max_position_embeddings=8192)), tokenizer=byte_tokenizer(64, end=0), device="cpu")
    assert lm.max_length == 8192
    assert len(generate(lm, [PROMPT], max_gen_toks=2048, until=[spelled([40])])[0]) <= 2048


def test_results_say_how_a_model_is_batched_and_what_its_state_is(llama: Callable[..., Path]) -> None:
    info = JRTLM(
        str(llama(max_position_embeddings=64)), tokenizer=byte_tokenizer(64, end=0), device="cpu"
    ).get_model_info()
    assert info["model_batching"] == "padded"
    assert "left padding changes logits by" in info["model_batching_reason"]
    assert info["model_state_bytes"] == info["model_attention_cache_bytes"] == 2 * 2 * 64 * 32 * 4
    assert info["model_recurrent_state_bytes"] == info["model_convolution_state_bytes"] == 0


def test_thinking(llama: Callable[..., Path]) -> None:
    folder, tokenizer = llama(), byte_tokenizer(64, end=0)
    whole = generate(JRTLM(str(folder), tokenizer=tokenizer, device="cpu"), [PROMPT])[0]
    end = whole[2]
    answer = whole.split(end)[-1].lstrip()
    for given in (end, ord(end) - 0x100, str(ord(end) - 0x100)):
        lm = JRTLM(str(folder), tokenizer=tokenizer, device="cpu", think_end_token=given, enable_thinking="true")
        assert generate(lm, [PROMPT])[0] == answer
    with pytest.raises(UserError, match="works with generation tasks only"):
        lm.loglikelihood([Instance("loglikelihood", {}, (PROMPT, PROMPT), 0)], True)
    with pytest.raises(UserError, match="needs think_end_token"):
        JRTLM(str(folder), tokenizer=tokenizer, device="cpu", enable_thinking=True)


def test_chat_template_arguments(llama: Callable[..., Path]) -> None:
    tokenizer = byte_tokenizer(64, end=0)
    tokenizer.chat_template = "{{ mood }}{% if enable_thinking %}!{% endif %}{{ messages[0].content }}"
    lm = JRTLM(str(llama()), tokenizer=tokenizer, device="cpu", chat_template_args='{"mood": "calm"}',
               enable_thinking=True, think_end_token="x")  # fmt: skip
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "calm!hi"


def test_arguments_for_transformers_classes(llama: Callable[..., Path], tmp_path: Path) -> None:
    folder, tokenizer = llama(), byte_tokenizer(64, end=0)
    plain = generate(JRTLM(str(folder), tokenizer=tokenizer, device="cpu"), [PROMPT])
    lm = JRTLM(str(folder), tokenizer=tokenizer, device="cpu", attn_implementation="eager")
    assert lm.config._attn_implementation == "eager"
    assert generate(lm, [PROMPT]) == plain
    lm = JRTLM(str(folder), tokenizer=tokenizer, device="cpu", parallelize=True)
    assert generate(lm, [PROMPT]) == plain
    byte_tokenizer(64, end=0).save_pretrained(folder)
    lm = JRTLM(str(tmp_path), subfolder="llama", device="cpu")
    assert generate(lm, [PROMPT]) == plain
    save_pretrained(tiny("based"), tmp_path / "based")
    for name in ("attn_implementation", "device_map", "peft"):
        with pytest.raises(UserError, match=f"{name} applies to transformers' classes"):
            load_model(tmp_path / "based", device="cpu", **{name: "auto"})
    with pytest.raises(UserError, match="must be a path inside"):
        load_model(tmp_path / "based", subfolder="../llama")


def test_a_peft_adapter_is_merged(llama: Callable[..., Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder, tokenizer = llama(), byte_tokenizer(64, end=0)
    base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        wanted, plain = tuned(ids).logits, load_model(folder, device="cpu")(ids).logits
        model = JRTLM(str(folder), tokenizer=tokenizer, device="cpu", peft=str(tmp_path / "adapter")).model
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.1
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder, device="cpu", peft=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"load_in_4bit": True}, "use --model hf"),
        ({"gguf_file": "x.gguf"}, "use --model hf"),
        ({"autogptq": True}, "use --model hf"),
        ({"backend": "causal"}, "an argument of --model hf"),
        ({"atn_implementation": "eager"}, "did you mean 'attn_implementation'"),
        ({"parallelize": "perhaps"}, "neither true nor false"),
        ({"chat_template_args": "{"}, "not a JSON object"),
        ({"prefix_token_id": -1}, "integer of at least 0"),
    ],
)
def test_what_is_not_supported(llama: Callable[..., Path], argument: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        JRTLM(str(llama()), tokenizer=byte_tokenizer(64, end=0), device="cpu", **argument)
