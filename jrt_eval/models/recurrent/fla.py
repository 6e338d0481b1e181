"""flash-linear-attention's checkpoints (GLA, RetNet, DeltaNet, Gated DeltaNet, KDA) as our own model class.

Their block is ours under other names: a mixer and a gated MLP, each behind an RMS norm. Hybrids have softmax attention in some layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.recurrent.config import MOST_LAYERS, ModelConfig
from jrt_eval.models.recurrent.loading import with_weights
from jrt_eval.models.recurrent.mixers import AttentionConfig, MixerConfig, ModelFacts, SlidingWindowConfig
from jrt_eval.models.recurrent.mixers.gated_delta_rule import (
    DeltaNetConfig,
    GatedDeltaNetConfig,
    KimiDeltaAttentionConfig,
)
from jrt_eval.models.recurrent.mixers.gated_linear_attention import GatedLinearAttentionConfig, RetentionConfig
from jrt_eval.models.recurrent.model import JRTModel
from jrt_eval.models.recurrent.reading import Section, short
from jrt_eval.models.weights import count_layers, merge_tied, read_weights

# model_type -> the mixer, and fla's defaults of num_heads and hidden_ratio
TYPES: dict[str, tuple[type[MixerConfig], int, int]] = {
    "gla": (GatedLinearAttentionConfig, 4, 4),
    "retnet": (RetentionConfig, 8, 2),
    "delta_net": (DeltaNetConfig, 16, 4),
    "gated_deltanet": (GatedDeltaNetConfig, 6, 4),
    "kda": (KimiDeltaAttentionConfig, 16, 4),
}
EMBEDDINGS, HEAD = "transformer.embeddings.word_embeddings.weight", "lm_head.weight"


def load_fla(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    backend: str,
    cuda_graphs: bool = True,
) -> JRTModel:
    """A checkpoint whose model_type is one of `TYPES`. Raises `UserError` for arithmetic that is not supported."""
    name = checkpoint.name
    tensors = read_weights(checkpoint)
    if raw["model_type"] == "retnet" and not any("_conv1d." in key for key in tensors):
        raw = {**raw, "use_short_conv": False}  # fla's RetNet accepts the key and builds no convolution
    config = parse_fla_config(raw, f"{name}/config.json")
    count_layers(tensors, r"layers\.(\d+)\.", config.n_layer, f"{name}: num_hidden_layers")
    tensors = _our_names(tensors, config, name)
    if config.tied:
        merge_tied(tensors, EMBEDDINGS, HEAD, f"{name}: tie_word_embeddings is true")
    with torch.device("meta"):
        model = JRTModel(config, raw, backend=backend)
    optional = {HEAD} if config.tied else ()
    return with_weights(
        model, tensors, source=name, device=device, dtype=dtype, optional=optional, cuda_graphs=cuda_graphs
    )


def parse_fla_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read a config of flash-linear-attention. Raises `UserError` for any value whose arithmetic is not supported."""
    top = Section(raw, source)
    mixer_type, heads, ratio = TYPES[raw["model_type"]]
    d_model, n_layer = top.size("hidden_size"), top.size("num_hidden_layers", MOST_LAYERS)
    top.only("hidden_act", "swish", "silu", default="swish")
    top.only("attnres_block_size", None, default=None)
    facts = ModelFacts(
        d_model=d_model, n_head=heads, head_dim=0, rotary_fraction=1.0, rotary_base=10000.0, qkv_bias=False,
        out_bias=False, fixed_decay=False, enc_length=None,
    )  # fmt: skip
    recurrent, attention = mixer_type.read(top, facts), _read_attention(top, d_model, n_layer)
    inner = top.integer("intermediate_size")
    if inner is None:  # 2/3 of the ratio, since a gated MLP has three matrices; rounded up to a multiple of 256
        given = 4.0 if "hidden_ratio" in raw and raw["hidden_ratio"] is None else float(ratio)
        inner = -(-int(d_model * top.number("hidden_ratio", given, 0, above=True) * 2 / 3) // 256) * 256
    vocab_size = top.size("vocab_size")
    return ModelConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        n_layer=n_layer,
        n_inner=inner,
        activation="swiglu",
        norm="rms",
        norm_eps=top.number("norm_eps", 1e-6, 0, 1, above=True),
        residual_in_fp32=True,
        fc1_bias=False,
        fc2_bias=False,
        tied=top.flag("tie_word_embeddings", False),
        head_bias=False,
        positions=0,
        decay_const=None,
        mixers=tuple(attention.get(i, recurrent) for i in range(n_layer)),
        exact_inner=inner,
    )


def _read_attention(top: Section, d_model: int, n_layer: int) -> dict[int, AttentionConfig]:
    """The softmax layers of a hybrid, by layer."""
    given = top.get("attn")
    layers: dict[int, AttentionConfig] = {}
    for spec in given if isinstance(given, list) else [given]:  # of a layer in several, the first counts
        layers = _attention_layers(spec, top, d_model, n_layer) | layers
    return layers


def _attention_layers(spec: Any, top: Section, d_model: int, n_layer: int) -> dict[int, AttentionConfig]:
    """The layers that one entry of `attn` describes."""
    if spec is None:
        return {}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("layers"), (list, tuple)):
        raise top.error(f"attn is {short(spec)}, it must be an object with a list of layers")
    if any(not isinstance(i, int) or not 0 <= i < n_layer for i in spec["layers"]):
        raise top.error(f"attn.layers is {short(spec['layers'])}, it must list layers from 0 to {n_layer - 1}")
    section = Section(spec, top.source, "attn.")
    section.get("layers")
    heads = section.size("num_heads")
    shared = section.integer("num_kv_heads", heads)
    if d_model % heads or heads % shared:
        raise section.error(
            f"num_heads is {heads}, it must divide hidden_size {d_model} and be a multiple of num_kv_heads {shared}"
        )
    head_dim = d_model // heads
    fields: dict[str, Any] = {
        "num_heads": heads,
        "head_dim": head_dim,
        "bias_in": section.flag("qkv_bias", False),
        "rotary_dim": head_dim,
        "rotary_base": section.number("rope_theta", 10000.0, 0, above=True),
    }
    section.only("qk_norm", False, None, default=False)
    window = section.integer("window_size")
    section.refuse_unread("attention")
    mixer = AttentionConfig(**fields) if window is None else SlidingWindowConfig(**fields, window=window)
    return dict.fromkeys(spec["layers"], mixer)


_NAMES = (
    (r"^embeddings\.weight$", EMBEDDINGS),
    (r"^norm\.weight$", "transformer.ln_f.weight"),
    (r"^layers\.(\d+)\.attn_norm\.", r"transformer.layers.\1.norm1."),
    (r"^layers\.(\d+)\.mlp_norm\.", r"transformer.layers.\1.norm2."),
    (r"^layers\.(\d+)\.mlp\.down_proj\.", r"transformer.layers.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.mlp\.", r"transformer.layers.\1.mlp."),
    (r"^layers\.(\d+)\.attn\.g_norm(_swish_gate)?\.", r"transformer.layers.\1.mixer.o_norm."),
    (r"^layers\.(\d+)\.attn\.", r"transformer.layers.\1.mixer."),
)


def _our_names(tensors: dict[str, Tensor], config: ModelConfig, source: str) -> dict[str, Tensor]:
    """The tensors under the names of `JRTModel`, with projections that we compute as one concatenated."""
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        pattern, name = next(((p, n) for p, n in _NAMES if re.match(p, key)), ("^", ""))
        named[re.sub(pattern, name, key, count=1)] = value
    for i, mixer in enumerate(config.mixers):
        prefix = f"transformer.layers.{i}."
        _join_mlp(named, prefix + "mlp.", config.inner(), source)
        if isinstance(mixer, AttentionConfig):
            _join_attention(named, prefix + "mixer.", mixer)
    return named


def _join_mlp(named: dict[str, Tensor], prefix: str, inner: int, source: str) -> None:
    """fc1 from up_proj and gate_proj; in older files gate_proj holds the gate and then the values."""
    gate, up = named.pop(prefix + "gate_proj.weight", None), named.pop(prefix + "up_proj.weight", None)
    if gate is None:
        raise UserError(f"{source}: the weights lack the MLP's gate_proj ({prefix}gate_proj.weight)")
    if up is None:
        gate, up = gate[:inner], gate[inner:]
    named[prefix + "fc1.weight"] = torch.cat([up, gate])


def _join_attention(named: dict[str, Tensor], prefix: str, mixer: AttentionConfig) -> None:
    """Wqkv from three projections; shared key and value heads are repeated for each of their query heads."""
    for kind in ("weight", "bias"):
        parts = [named.pop(f"{prefix}{name}_proj.{kind}", None) for name in ("q", "k", "v")]
        if any(part is None for part in parts):
            continue  # a bias that the config does not have, or a lack that `assign` reports
        heads = [part.unflatten(0, (-1, mixer.head_dim)) for part in parts if part is not None]
        heads = [part.repeat_interleave(mixer.num_heads // part.shape[0], 0) for part in heads]
        named[f"{prefix}Wqkv.{kind}"] = torch.cat(heads).flatten(0, 1)
    if prefix + "o_proj.weight" in named:
        named[prefix + "out_proj.weight"] = named.pop(prefix + "o_proj.weight")


def fla_state_dict(model: JRTModel) -> dict[str, Tensor]:
    """The tensors of a model that `load_fla` made, under fla's names: the inverse of `_our_names`."""
    raw = model.raw_config
    named: dict[str, Tensor] = {}
    fused = raw.get("fuse_norm", True) and raw.get("use_output_gate", True)
    for key, value in model.state_dict().items():
        for pattern, name in _fla_names("g_norm_swish_gate" if fused else "g_norm", raw["model_type"]):
            key = re.sub(pattern, name, key)
        layer = re.match(r"layers\.(\d+)\.", key)
        if ".mlp.fc1." in key:
            parts = dict(zip(("up_proj", "gate_proj"), value.chunk(2), strict=True))
            named |= {key.replace("fc1", part): x for part, x in parts.items()}
        elif ".attn.Wqkv." in key and layer:
            parts = _split_attention(value, raw["attn"], int(layer[1]))
            named |= {key.replace("Wqkv", part): x for part, x in parts.items()}
        else:
            named[key] = value
    return {key if key == HEAD else f"model.{key}": value.detach().clone() for key, value in named.items()}


def _fla_names(norm: str, kind: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"^{re.escape(EMBEDDINGS)}$", "embeddings.weight"),
        (r"^transformer\.ln_f\.", "norm."),
        (r"^transformer\.", ""),
        (r"\.norm1\.", ".attn_norm."),
        (r"\.norm2\.", ".mlp_norm."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        (r"\.mixer\.o_norm\.", f".mixer.{norm}." if kind in ("gla", "retnet") else ".mixer.o_norm."),
        (r"\.mixer\.out_proj\.", ".mixer.o_proj."),
        (r"\.mixer\.", ".attn."),
    )


def _split_attention(value: Tensor, given: Any, layer: int) -> dict[str, Tensor]:
    """The three projections in Wqkv; of key and value heads that several query heads share, one."""
    spec = next(s for s in (given if isinstance(given, list) else [given]) if layer in s["layers"])
    groups = spec["num_heads"] // (spec.get("num_kv_heads") or spec["num_heads"])
    heads = [part.unflatten(0, (spec["num_heads"], -1)) for part in value.chunk(3)]
    q, k, v = (part[::step].flatten(0, 1) for part, step in zip(heads, (1, groups, groups), strict=True))
    return {"q_proj": q, "k_proj": k, "v_proj": v}
