"""Mamba, Mamba-2, FalconMamba and hybrids in our own model class, against transformers' classes and against formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jrt_eval
from jrt_eval.errors import UserError
from jrt_eval.models.recurrent.mamba import MambaModel, read_mamba_ssm
from jrt_eval.models.recurrent.mixers import Call
from jrt_eval.models.recurrent.mixers.convolved_attention import ConvolvedAttentionConfig

SMALL = {
    "vocab_size": 120,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

MAMBA: list[dict[str, Any]] = [
    {},
    {"state_size": 1},
    {"state_size": 13, "conv_kernel": 2},
    {"state_size": 32, "conv_kernel": 7, "use_bias": True},
    {"conv_kernel": 1, "use_conv_bias": False},
    {"expand": 1, "time_step_rank": 5},
    {"expand": 3, "hidden_size": 22, "residual_in_fp32": False},
    {"hidden_size": 17, "tie_word_embeddings": False},
]
FALCON: list[dict[str, Any]] = [
    {},
    {"state_size": 5, "mixer_rms_eps": 1e-3},
    {"expand": 4, "use_bias": True, "tie_word_embeddings": False},
]
MAMBA2: list[dict[str, Any]] = [
    {"num_heads": 6, "head_dim": 8, "n_groups": 1},
    {"num_heads": 6, "head_dim": 8, "n_groups": 2, "state_size": 13},
    {"num_heads": 6, "head_dim": 8, "n_groups": 6, "state_size": 1},
    {"num_heads": 3, "head_dim": 16, "n_groups": 3, "conv_kernel": 2, "use_bias": True},
    {"num_heads": 1, "head_dim": 48, "n_groups": 1, "use_conv_bias": False, "conv_kernel": 3},
    {"num_heads": 8, "head_dim": 9, "n_groups": 4, "expand": 3, "state_size": 20},
    {"num_heads": 4, "head_dim": 6, "n_groups": 2, "expand": 1, "time_step_limit": [0.01, 0.05]},
    {"num_heads": 16, "head_dim": 3, "n_groups": 8, "residual_in_fp32": False, "tie_word_embeddings": True},
    {"num_heads": 17, "head_dim": 2, "n_groups": 1, "hidden_size": 17, "state_size": 130},
]
CASES = [
    *(pytest.param("Mamba", given, id=f"mamba-{i}") for i, given in enumerate(MAMBA)),
    *(pytest.param("FalconMamba", given, id=f"falcon-{i}") for i, given in enumerate(FALCON)),
    *(pytest.param("Mamba2", given, id=f"mamba2-{i}") for i, given in enumerate(MAMBA2)),
]


def transformers_model(kind: str, given: dict[str, Any]) -> Any:
    """A random model of transformers' class, with nothing at its initial value."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | {"state_size": 16, "chunk_size": 16} | given)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_logits_and_greedy_text_are_those_of_transformers(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    theirs = transformers_model(kind, given)
    theirs.save_pretrained(tmp_path)
    mine: Any = jrt_eval.load_model(tmp_path, device="cpu")
    assert isinstance(mine, MambaModel)
    assert mine.family == theirs.config.model_type
    ids = torch.randint(1, 120, (2, 70))
    with torch.no_grad():
        torch.testing.assert_close(mine(ids).logits, theirs(ids, use_cache=False).logits, rtol=0, atol=1e-4)
    cached = "time_step_limit" not in given  # transformers' decode step leaves the limit out
    want = theirs.generate(ids[:1], max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=cached)
    assert torch.equal(mine.generate(ids[:1], max_new_tokens=12), want)


@pytest.mark.parametrize(("kind", "given"), CASES[::3])
def test_prefill_in_pieces_steps_and_padding(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    transformers_model(kind, given).save_pretrained(tmp_path)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    ids = torch.randint(1, 120, (3, 50))
    lengths = torch.tensor([30, 1, 17])
    with torch.no_grad():
        first = model(ids[:, :30], lengths=lengths)
        second = model(ids[:, 30:45], state=first.state)
        steps = [model.step(ids[:, t], second.state) for t in range(45, 50)]
        for row, count in enumerate(lengths.tolist()):
            alone = torch.cat([ids[row, :count], ids[row, 30:]])[None]
            want = model(alone).logits[0]
            got = [first.logits[row, :count], second.logits[row], *(s[row][None] for s in steps)]
            torch.testing.assert_close(torch.cat(got), want, rtol=0, atol=1e-4)
        assert second.state.length.tolist() == [50, 21, 37]
    assert model.state_size(10) == model.state_size(10_000) == first.state.select(torch.tensor([0])).nbytes()


def test_contexts_are_shared_and_neighbours_do_not_matter(tmp_path: Path) -> None:
    transformers_model("Mamba", {}).save_pretrained(tmp_path)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    contexts, continuations = [[5, 6, 7], [5, 6, 7], [8] * 20], [[1, 2], [3], [4, 5, 6]]
    together = model.score(contexts, continuations)
    for context, continuation, (logp, greedy) in zip(contexts, continuations, together, strict=True):
        ((alone, alone_greedy),) = model.score([context], [continuation])
        torch.testing.assert_close(logp, alone, rtol=0, atol=1e-5)
        assert torch.equal(greedy, alone_greedy)
    texts = model.continue_prompts(contexts, 9, sampling={}, stop_ids=[])
    assert [model.continue_prompts([c], 9, sampling={}, stop_ids=[])[0] for c in contexts] == texts


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_every_backend_and_dtype(tmp_path: Path, kind: str) -> None:
    given = {} if kind == "Mamba" else MAMBA2[1]
    transformers_model(kind, given).save_pretrained(tmp_path)
    ids = torch.randint(1, 120, (2, 70))
    with torch.no_grad():
        want = jrt_eval.load_model(tmp_path, device="cpu", backend="torch")(ids).logits
        torch.testing.assert_close(jrt_eval.load_model(tmp_path, device="cpu")(ids).logits, want, rtol=0, atol=1e-4)
        half = jrt_eval.load_model(tmp_path, device="cpu", dtype="bfloat16")(ids).logits
    assert (half - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_compiles_without_a_graph_break(tmp_path: Path, kind: str) -> None:
    given = {} if kind == "Mamba" else MAMBA2[1]
    transformers_model(kind, given).save_pretrained(tmp_path)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    ids = torch.randint(1, 120, (2, 20))
    compiled = torch.compile(lambda ids: model(ids).logits, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), model(ids).logits, rtol=0, atol=1e-4)


# --- mamba_ssm's layout, beyond what transformers' classes have

HYBRID = {
    "d_model": 24, "n_layer": 3, "vocab_size": 117, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
    "pad_vocab_size_multiple": 16, "tie_embeddings": True, "d_intermediate": 40, "attn_layer_idx": [1],
    "ssm_cfg": {"layer": "Mamba2", "headdim": 12, "d_state": 9, "ngroups": 2},
    "attn_cfg": {"causal": True, "d_conv": 4, "head_dim": 6, "num_heads": 5, "out_proj_bias": False,
                 "qkv_proj_bias": False, "rotary_emb_dim": 4},
}  # fmt: skip


def random_model(config: dict[str, Any], folder: Path | None = None) -> MambaModel:
    torch.manual_seed(1)
    model = MambaModel(read_mamba_ssm(config), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"d_intermediate": 0},
        {"attn_cfg": {"causal": True, "num_heads": 4, "num_heads_kv": 2, "head_dim": 8}},
        {"rms_norm": False},
        {"ssm_cfg": {"layer": "Mamba1", "d_state": 4}},
        {"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "d_state": 9, "norm_before_gate": True, "D_has_hdim": True}},
        {"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "d_state": 9, "rmsnorm": False}, "attn_layer_idx": [0, 2]},
    ],
    ids=["hybrid", "no-mlp", "shared-keys", "layer-norm", "mamba1", "norm-before-gate", "no-norm"],
)
def test_hybrids_by_pieces_steps_and_padding(tmp_path: Path, change: dict[str, Any]) -> None:
    original = random_model(HYBRID | change, tmp_path)
    model: Any = jrt_eval.load_model(tmp_path, device="cpu")
    assert model.family == "mamba_hybrid"
    ids, lengths = torch.randint(1, 117, (2, 40)), torch.tensor([20, 7])
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.equal(whole, original(ids).logits)
        first = model(ids[:, :20], lengths=lengths)
        second = model(ids[:, 20:33], state=first.state)
        for row, count in enumerate(lengths.tolist()):
            want = model(torch.cat([ids[row, :count], ids[row, 20:33]])[None]).logits[0]
            got = torch.cat([first.logits[row, :count], second.logits[row]])
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        state = model(ids[:, :33]).state
        for t in range(33, 40):
            torch.testing.assert_close(model.step(ids[:, t], state), whole[:, t], rtol=0, atol=1e-4)


def test_attention_of_a_hybrid_is_its_formula() -> None:
    """Convolution over queries, keys and values, rotary embedding of half against half, keys shared by two heads each."""
    torch.manual_seed(0)
    config = ConvolvedAttentionConfig(num_heads=4, num_key_heads=2, head_dim=6, width=3, rotary_dim=4, bias_in=False)
    layer: Any = config.build(10).double()
    x = torch.randn(1, 9, 10, dtype=torch.float64)
    with torch.no_grad():
        got, _ = layer(x, None, Call(torch.arange(9)[None], backend="torch"))
        qkv = F.pad((x @ layer.in_proj.weight.T).transpose(1, 2), (2, 0))
        qkv = F.conv1d(qkv, layer.conv1d.weight, layer.conv1d.bias, groups=48).transpose(1, 2).view(9, 8, 6)

        def turned(v: Tensor) -> Tensor:
            angle = torch.arange(9)[:, None] * torch.tensor([1.0, 10000.0**-0.5], dtype=torch.float64)
            one, two = v[..., :2], v[..., 2:4]
            return torch.cat(
                [one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos(), v[..., 4:]], -1
            )

        heads = []
        for head in range(4):
            q, k, v = turned(qkv[:, head]), turned(qkv[:, 4 + head // 2]), qkv[:, 6 + head // 2]
            scores = (q @ k.T / math.sqrt(6)).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        want = layer.out_proj(torch.cat(heads, -1))
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-5)  # the angles are float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_layer_idx": [3]}, r"attn_layer_idx is \[3\]"),
        ({"attn_cfg": {}}, "attn_cfg.num_heads is missing"),
        ({"attn_cfg": {"causal": False, "num_heads": 2}}, "causal is False"),
        ({"attn_cfg": {"causal": True, "num_heads": 2, "head_dim": 12, "rotary_emb_dim": 3}}, "rotary_emb_dim is 3"),
        ({"attn_cfg": {"causal": True, "num_heads": 2, "head_dim": 12, "rotary_emb_interleaved": True}}, "interleaved"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "ngroups": 3}}, "ngroups is 3"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "d_ssm": 20}}, "d_ssm is 20"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "dt_limit": [2, 1]}}, "dt_limit"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 12, "unheard_of": 1}}, "unheard_of"),
        ({"d_intermediate": -1}, "d_intermediate is -1"),
        ({"hidden_size": 24, "model_type": "mamba", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": 24, "model_type": "mamba2", "num_heads": 3, "head_dim": 5}, "num_heads 3 times head_dim 5"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HYBRID | change))
    with pytest.raises(UserError, match=says) as raised:
        jrt_eval.load_model(tmp_path, device="cpu")
    assert "\n" not in str(raised.value)
