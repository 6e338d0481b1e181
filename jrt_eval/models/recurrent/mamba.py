"""Mamba, Mamba-2 and their hybrids with attention: config and model.

    r = embed(ids);  per layer  r += mixer(norm(r)),  and with d_intermediate  r += mlp(norm2(r));  logits = norm_f(r) @ embeddings^T

`read_mamba_ssm` reads the `config.json` of mamba_ssm, `read_transformers` that of transformers' Mamba, Mamba-2 and FalconMamba.
The names of the weights are mamba_ssm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from jrt_eval.models.recurrent.layers import MLP, LayerNorm, RMSNorm
from jrt_eval.models.recurrent.mixers import MixerConfig, ModelFacts
from jrt_eval.models.recurrent.mixers.convolved_attention import ConvolvedAttentionConfig
from jrt_eval.models.recurrent.mixers.mamba import LARGEST_EXPAND, LARGEST_KERNEL, LARGEST_STATE, MambaConfig
from jrt_eval.models.recurrent.mixers.mamba2 import Mamba2Config, read_groups, read_limit
from jrt_eval.models.recurrent.model import RecurrentModel
from jrt_eval.models.recurrent.reading import Section, short

MOST_LAYERS = 4096
MLP_MULTIPLE = 128  # mamba_ssm rounds the width of its MLP up to a multiple of this


@dataclass(frozen=True)
class MambaModelConfig:
    """A model's architecture, with every default filled in."""

    vocab_size: int  # as the file says, without padding rows
    padded_vocab_size: int
    d_model: int
    mixers: tuple[MixerConfig, ...]
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    tied: bool = True
    inner: int = 0  # width of the MLP, 0 without

    @property
    def n_layer(self) -> int:
        return len(self.mixers)

    @property
    def enc_length(self) -> int:
        return 0

    @property
    def family(self) -> str:
        """mamba, mamba2, falcon_mamba, or mamba_hybrid for one with attention layers."""
        kinds = {mixer.kind for mixer in self.mixers}
        if kinds == {"mamba"}:
            falcon = any(isinstance(mixer, MambaConfig) and mixer.norm_eps is not None for mixer in self.mixers)
            return "falcon_mamba" if falcon else "mamba"
        return "mamba2" if kinds == {"mamba2"} else "mamba_hybrid"


# Options of ssm_cfg that say how something starts or is computed, not what is computed.
_IGNORED = {
    "layer", "use_fast_path", "use_mem_eff_path", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor",
    "A_init_range", "device", "dtype", "layer_idx", "process_group", "sequence_parallel", "conv_init",
}  # fmt: skip


def read_mamba_ssm(raw: Mapping[str, Any], source: str = "config.json", arch: str | None = None) -> MambaModelConfig:
    """mamba_ssm's `config.json`, with mamba_ssm's defaults. arch: mamba1 or mamba2 replaces the config's.

    Raises `UserError` for any value whose arithmetic is not supported.
    """
    top = Section(raw, source)
    d_model, layers = top.size("d_model"), top.size("n_layer", MOST_LAYERS)
    vocabulary, multiple = top.size("vocab_size"), top.integer("pad_vocab_size_multiple", 8)
    ssm = _object(top, "ssm_cfg")
    layer = {"mamba1": "Mamba1", "mamba2": "Mamba2"}.get(str(arch).lower()) or ssm.get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise ssm.error(f"layer is {short(layer)}, known are 'Mamba1' and 'Mamba2'")
    facts = _facts(d_model)
    mixer = (MambaConfig if layer == "Mamba1" else Mamba2Config).read(ssm, facts)
    ssm.read |= _IGNORED
    ssm.refuse_unread(layer)
    places = _attention_layers(top, layers)
    attention: MixerConfig = mixer
    if places:
        section = _object(top, "attn_cfg")
        attention = ConvolvedAttentionConfig.read(section, facts)
        section.refuse_unread("attention")
    inner = top.integer("d_intermediate", 0, low=0)
    return MambaModelConfig(
        vocab_size=vocabulary,
        padded_vocab_size=-(-vocabulary // multiple) * multiple,
        d_model=d_model,
        mixers=tuple(attention if i in places else mixer for i in range(layers)),
        norm="rms" if top.flag("rms_norm", True) else "layer",
        norm_eps=top.number("norm_epsilon", 1e-5, 0, 1, above=True),
        residual_in_fp32=top.flag("residual_in_fp32", True),
        tied=top.flag("tie_embeddings", True),
        inner=-(-inner // MLP_MULTIPLE) * MLP_MULTIPLE,
    )


def read_transformers(raw: Mapping[str, Any], source: str = "config.json") -> MambaModelConfig:
    """The `config.json` of transformers' Mamba, Mamba-2 and FalconMamba, with transformers' defaults.

    Raises `UserError` for any value whose arithmetic is not supported.
    """
    top = Section(raw, source)
    kind = top.get("model_type")
    d_model, layers = (
        top.integer("hidden_size", 4096 if kind == "mamba2" else 768),
        top.integer("num_hidden_layers", 64 if kind == "mamba2" else 32, high=MOST_LAYERS),
    )
    top.only("hidden_act", "silu", default="silu")
    common: dict[str, Any] = {
        "states": top.integer("state_size", 128 if kind == "mamba2" else 16, high=LARGEST_STATE),
        "width": top.integer("conv_kernel", 4, high=LARGEST_KERNEL),
        "bias": top.flag("use_bias", False),
        "conv_bias": top.flag("use_conv_bias", True),
    }
    inner = int(top.number("expand", 2, 0, LARGEST_EXPAND, above=True) * d_model)
    eps = top.number("layer_norm_epsilon", 1e-5, 0, 1, above=True)
    mixer: MixerConfig
    if kind == "mamba2":
        heads, head_dim = top.integer("num_heads", 128), top.integer("head_dim", 64)
        if heads * head_dim != inner:
            raise top.error(f"num_heads {heads} times head_dim {head_dim} is not expand * hidden_size = {inner}")
        mixer = Mamba2Config(
            heads, head_dim, groups=read_groups(top, "n_groups", heads) if "n_groups" in raw else _groups(top, heads),
            norm_eps=eps, dt_limit=read_limit(top, "time_step_limit"), **common,
        )  # fmt: skip
    else:
        rank = -(-d_model // 16) if top.get("time_step_rank", "auto") == "auto" else top.size("time_step_rank")
        falcon = top.number("mixer_rms_eps", 1e-6, 0, 1, above=True) if kind == "falcon_mamba" else None
        mixer = MambaConfig(inner, rank=rank, norm_eps=falcon, **common)
    vocabulary = top.integer("vocab_size", 32768 if kind == "mamba2" else 50280)
    return MambaModelConfig(
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        d_model=d_model,
        mixers=(mixer,) * layers,
        norm_eps=eps,
        residual_in_fp32=top.flag("residual_in_fp32", True),
        tied=top.flag("tie_word_embeddings", kind != "mamba2"),
    )


def _groups(top: Section, heads: int) -> int:
    """transformers' default."""
    if heads % 8:
        raise top.error(f"n_groups is missing, and its default 8 does not divide num_heads {heads}")
    return 8


def _object(top: Section, key: str) -> Section:
    value = top.get(key) or {}
    if not isinstance(value, Mapping):
        raise top.error(f"{key} is {short(value)}, it must be an object")
    return Section(value, top.source, f"{key}.")


def _attention_layers(top: Section, layers: int) -> set[int]:
    places = top.get("attn_layer_idx") or []
    valid = isinstance(places, (list, tuple)) and all(type(i) is int and 0 <= i < layers for i in places)
    if not valid:
        raise top.error(f"attn_layer_idx is {short(places)}, it must be a list of layer indices below {layers}")
    return set(places)


def _facts(d_model: int) -> ModelFacts:
    """What mixers of the release's form read from the top level; Mamba's read only d_model."""
    return ModelFacts(
        d_model, n_head=1, head_dim=d_model, rotary_fraction=0.0, rotary_base=math.inf, qkv_bias=False, out_bias=False,
        fixed_decay=False, enc_length=None,
    )  # fmt: skip


class MambaBlock(nn.Module):
    """One pre-norm layer: a mixer and, in models with d_intermediate, an MLP."""

    def __init__(self, config: MambaModelConfig, index: int) -> None:
        super().__init__()
        norm = RMSNorm if config.norm == "rms" else LayerNorm
        self.norm = norm(config.d_model, config.norm_eps)
        self.mixer = config.mixers[index].build(config.d_model)
        self.mlp: MLP | None = None
        if config.inner:
            self.norm2 = norm(config.d_model, config.norm_eps)
            self.mlp = MLP(config.d_model, config.inner, "swiglu", False, False)


class MambaModel(RecurrentModel):
    """A Mamba, Mamba-2, FalconMamba or hybrid model."""

    def __init__(self, config: MambaModelConfig, raw: Mapping[str, Any], *, backend: str = "auto") -> None:
        super().__init__(config, raw, backend)
        norm = RMSNorm if config.norm == "rms" else LayerNorm
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.backbone.layers = nn.ModuleList(MambaBlock(config, i) for i in range(config.n_layer))
        self.backbone.norm_f = norm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self.tie_weights()

    @property
    def _embeddings(self) -> nn.Embedding:
        return self.backbone.embedding  # type: ignore[return-value]

    @property
    def _layers(self) -> list[Any]:
        layers: Any = self.backbone.layers
        return list(layers)

    @property
    def _norms(self) -> list[Any]:
        return [*(layer.norm for layer in self._layers), self.backbone.norm_f]
