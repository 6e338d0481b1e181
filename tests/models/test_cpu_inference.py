"""Transformers' models on a CPU: the growing cache, the attention function, and scoring without whole logits."""

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from jrt_eval.errors import UserError
from jrt_eval.kernels import linear
from jrt_eval.kernels.memory import keep_freed_memory, page_out
from jrt_eval.models import cpu_inference
from jrt_eval.models.transformers import TransformersModel

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2),
    "gemma2": Gemma2Config(
        **SMALL, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**SMALL, state_size=8),
    "falcon_h1": FalconH1Config(
        **SMALL, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4,
        mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_expand=1, lm_head_multiplier=0.5,
    ),
}  # fmt: skip


def model(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype).eval()
    inner.generation_config.eos_token_id = None
    return inner


def prompts(batch: int = 3, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, :5] = 0
    return torch.randint(3, 97, (batch, length)), mask


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_growing_cache_generates_the_same_tokens(name):
    inner = model(name)
    ids, mask = prompts()
    arguments = {"max_new_tokens": 70, "do_sample": False, "pad_token_id": 0}  # more than the room of one allocation
    wanted = inner.generate(input_ids=ids, attention_mask=mask, **arguments)
    given = cpu_inference.growing_cache(inner, {})
    assert given or name in ("mamba", "falcon_h1")
    assert torch.equal(inner.generate(input_ids=ids, attention_mask=mask, **arguments, **given), wanted)


@torch.no_grad()
def test_growing_cache_holds_what_the_usual_one_holds():
    inner = model("llama")
    ((name, growing),) = cpu_inference.growing_cache(inner, {}).items()
    usual = DynamicCache(config=inner.config)
    torch.manual_seed(0)
    for number, length in enumerate([5, 1, 1, 80, 1, 3, 1]):
        if number == 2:
            for cache in (usual, growing):
                cache.crop(-2)
        if number == 4:
            for cache in (usual, growing):
                cache.reorder_cache(torch.tensor([1, 0, 1]))
        if number == 5:
            for cache in (usual, growing):
                cache.batch_select_indices(torch.tensor([0, 2]))
        batch = 2 if number >= 5 else 3
        keys, values = torch.randn(2, batch, 2, length, 8).unbind(0)
        for layer in range(2):
            wanted = usual.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(growing.update(keys, values, layer), wanted, strict=True))
        assert growing.get_seq_length() == usual.get_seq_length()
    assert name in ("cache", "past_key_values")


@pytest.mark.parametrize("arguments", [{"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_other_caches_are_left_alone(arguments):
    assert cpu_inference.growing_cache(model("llama"), arguments) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 128, 129, 300])
@pytest.mark.parametrize("heads", [2, 6])
@torch.no_grad()
def test_attention_agrees_with_float64(dtype, length, heads):
    torch.manual_seed(0)
    q = torch.randn(2, heads, length, 16).to(dtype)
    k, v = torch.randn(2, 2, 2, max(length, 7), 16).to(dtype).unbind(0)
    if length > 1:
        k, v = k[:, :, :length], v[:, :, :length]
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // 2, True
    y, _ = cpu_inference.attention(module, q, k, v, None, scaling=0.3)
    exact = nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), scale=0.3, is_causal=length > 1, enable_gqa=True
    ).transpose(1, 2)
    assert y.shape == exact.shape and y.dtype == dtype
    assert (y.double() - exact).abs().max() < (1e-5 if dtype == torch.float32 else 0.04)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prepared_model_computes_the_same_logits(dtype):
    inner = model("llama", dtype)
    ids, mask = prompts(length=200)
    usual = [inner(input_ids=ids).logits, inner(input_ids=ids, attention_mask=mask).logits]
    cpu_inference.prepare(inner)
    assert inner.config._attn_implementation == cpu_inference.ATTENTION
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for wanted, given in zip(usual, ({}, {"attention_mask": mask}), strict=True):
        assert (inner(input_ids=ids, **given).logits - wanted)[1:].abs().max() < tolerance
    assert (inner(input_ids=ids[:, :1]).logits - usual[0][:, :1]).abs().max() < tolerance


def test_models_without_sdpa_are_left_alone():
    for name in ("mamba", "gemma2"):
        inner = model(name)
        before = inner.config._attn_implementation
        cpu_inference.prepare(inner)
        assert inner.config._attn_implementation in (before, cpu_inference.ATTENTION)
        inner(input_ids=prompts()[0])


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_scores_without_whole_logits(name):
    inner = model(name)
    scorer = TransformersModel(inner)
    contexts = [[5, 6, 7, 8], list(range(3, 40)), [9]]
    continuations = [[11, 12, 13], [14], list(range(20, 45))]
    widths = []
    hook = inner.get_output_embeddings().register_forward_hook(
        lambda module, args, y: widths.append(y.shape[:-1].numel())
    )
    scored = scorer.score(contexts, continuations)
    hook.remove()
    head_is_last = name in ("llama", "gpt2", "mamba")
    assert scorer._head_is_last == head_is_last
    if head_is_last:
        assert max(widths) <= sum(map(len, continuations))
    for context, tokens, (logps, greedy) in zip(contexts, continuations, scored, strict=True):
        logits = inner(input_ids=torch.tensor([context + tokens])).logits[0, len(context) - 1 : -1].double()
        wanted = logits.log_softmax(-1)[range(len(tokens)), tokens]
        assert (logps.double() - wanted).abs().max() < 1e-4
        assert torch.equal(greedy, logits.argmax(-1) == torch.tensor(tokens))


@torch.no_grad()
def test_saved_packed_model_is_the_original(tmp_path):
    inner = model("llama")
    state = {k: v.clone() for k, v in inner.state_dict().items()}
    linear.use_fastest(inner, "packed")
    assert linear.products(inner)["packed"] == 15
    inner.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)
    ids, _ = prompts()
    assert inner.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (3, 23)
    assert linear.products(inner)["packed"] == 15


def test_keeping_freed_memory():
    assert isinstance(keep_freed_memory(), bool)


def adapter(**arguments):
    from jrt_eval.model_adapters.jrt import JRTLM

    return JRTLM(pretrained="mini-attn", device="cpu", batch_size=2, **arguments)


def test_adapter_answers_and_scores_do_not_depend_on_the_product():
    from lm_eval.api.instance import Instance

    text = "Ann has a cat. Ben has a dog. Carl has a bird. Ann has a"
    generate = [Instance("generate_until", {}, (text[k:], {"until": ["\n"], "max_gen_toks": 6}), k) for k in range(3)]
    score = [Instance("loglikelihood", {}, (text[k:], " cat"), k) for k in range(3)]
    answers = {}
    for setting in ("torch", "packed", "auto"):
        lm = adapter(cpu_linear=setting)
        answers[setting] = lm.generate_until(generate, disable_tqdm=True), lm.loglikelihood(score, disable_tqdm=True)
        used = lm.get_model_info()["model_cpu_linear"]
        if setting != "auto":
            assert used.keys() == ({"torch"} if setting == "torch" else {"onednn", "packed"})
    for setting in ("packed", "auto"):
        assert answers[setting][0] == answers["torch"][0]
        for (a, greedy), (b, wanted) in zip(answers[setting][1], answers["torch"][1], strict=True):
            assert abs(a - b) < 1e-3 and greedy == wanted


def test_adapter_leaves_autocast_to_torch():
    used = adapter(mixed_precision_dtype="bfloat16").get_model_info()["model_cpu_linear"]
    assert used.keys() == {"torch"}


def test_adapter_refuses_unknown_products():
    with pytest.raises(UserError, match=r"cpu_linear=onednn is not known, these are: auto, torch, packed"):
        adapter(cpu_linear="onednn")


def test_pages_that_are_dropped_keep_their_contents(tmp_path):
    wanted = torch.arange(300_000, dtype=torch.float32)
    torch.save(wanted, tmp_path / "x.pt")
    mapped = torch.load(tmp_path / "x.pt", mmap=True)
    for x in (mapped, wanted.clone(), mapped[5:], wanted[:0], wanted.view(-1, 2).t()):
        before = x.clone()
        page_out(x)
        assert torch.equal(x, before)
