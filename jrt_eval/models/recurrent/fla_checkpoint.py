"""flash-linear-attention's checkpoints of GLA, RetNet, DeltaNet, Gated DeltaNet and KDA in our own model class.

The layers are those of `JRTModel` with other names: r += attn(attn_norm(r)), r += mlp(mlp_norm(r)), with a gated MLP.
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
from jrt_eval.models.recurrent.mixers.base import ModelFacts
from jrt_eval.models.recurrent.mixers.gated import (
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GatedMixerConfig,
    GLAConfig,
    KDAConfig,
    RetNetConfig,
)
from jrt_eval.models.recurrent.model import JRTModel
from jrt_eval.models.recurrent.reading import Section
from jrt_eval.models.weights import assign, common_dtype, count_layers, merge_tied, read_weights

# model_type -> mixer
MIXERS: dict[str, type[GatedMixerConfig]] = {
    config.kind: config for config in (GLAConfig, RetNetConfig, DeltaNetConfig, GatedDeltaNetConfig, KDAConfig)
}

_NAMES = [
    (r"^(model\.)?embeddings\.", "transformer.embeddings.word_embeddings."),
    (r"^(model\.)?norm\.", "transformer.ln_f."),
    (r"^(model\.)?layers\.(\d+)\.attn_norm\.", r"transformer.layers.\2.norm1."),
    (r"^(model\.)?layers\.(\d+)\.mlp_norm\.", r"transformer.layers.\2.norm2."),
    (r"^(model\.)?layers\.(\d+)\.attn\.", r"transformer.layers.\2.mixer."),
    (r"^(model\.)?layers\.(\d+)\.mlp\.down_proj\.", r"transformer.layers.\2.mlp.fc2."),
    (r"^(model\.)?layers\.(\d+)\.mlp\.(up|gate)_proj\.", r"transformer.layers.\2.mlp.\3_proj."),
]


def is_ours(raw: Mapping[str, Any]) -> bool:
    """Whether `load_fla` knows the model: one of the five types, without layers of softmax attention."""
    return raw.get("model_type") in MIXERS and not raw.get("attn")


def parse_fla_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """fla's config as ours. Raises `UserError` for options that change the arithmetic and are not supported."""
    top = Section(raw, source)
    top.only("hidden_act", "swish", "silu", default="swish")
    top.only("elementwise_affine", True, default=True)
    top.only("attnres_block_size", None, default=None)
    width, layers, vocabulary = (
        top.size("hidden_size"),
        top.size("num_hidden_layers", MOST_LAYERS),
        top.size("vocab_size"),
    )
    facts = ModelFacts(width, 1, width, 0.0, 10000.0, False, False, False, None)
    mixer = MIXERS[str(raw["model_type"])].read(top, facts)
    assert isinstance(mixer, GatedMixerConfig)
    return ModelConfig(
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        d_model=width,
        n_layer=layers,
        n_inner=top.integer("intermediate_size"),
        activation="swiglu",
        norm="rms",
        norm_eps=mixer.norm_eps,
        residual_in_fp32=True,
        fc1_bias=False,
        fc2_bias=False,
        tied=top.flag("tie_word_embeddings", False),
        head_bias=False,
        positions=0,
        decay_const=None,
        mixers=(mixer,) * layers,
    )


def load_fla(
    checkpoint: Checkpoint, raw: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype | None, backend: str
) -> JRTModel:
    """A checkpoint in fla's layout."""
    name = checkpoint.name
    config = parse_fla_config(raw, f"{name}/config.json")
    tensors = _renamed(read_weights(checkpoint), name)
    embeddings, head = "transformer.embeddings.word_embeddings.weight", "lm_head.weight"
    if config.tied:
        merge_tied(tensors, embeddings, head, f"{name}: tie_word_embeddings is true")
    count_layers(tensors, r"transformer\.layers\.(\d+)\.", config.n_layer, f"{name}: num_hidden_layers")
    config = config.complete(lambda key: tuple(tensors[key].shape) if key in tensors else None)
    with torch.device("meta"):
        model = JRTModel(config, raw, backend=backend)
    kind = common_dtype(tensors, name)
    optional = {head} if config.tied else set()
    assign(model, tensors, source=name, device=device, dtype=dtype or kind, optional=lambda key: key in optional)
    model.tie_weights()
    return model.eval()


def _renamed(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """fla's names as ours; fc1 is the up-projection's rows, then the gate's."""
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        new = key
        for pattern, replacement in _NAMES:
            new, found = re.subn(pattern, replacement, key)
            if found:
                break
        result[new] = tensor
    for key in [k for k in result if k.endswith(".mlp.up_proj.weight")]:
        stem = key.removesuffix("up_proj.weight")
        up, gate = result.pop(key), result.pop(f"{stem}gate_proj.weight", None)
        if gate is None or gate.shape != up.shape:
            raise UserError(f"{source}: {stem}gate_proj.weight is missing or has another shape than up_proj")
        result[f"{stem}fc1.weight"] = torch.cat([up, gate])
    return result
