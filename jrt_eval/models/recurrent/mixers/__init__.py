"""Sequence mixers, one module each.

A module has the mixer's config (a dataclass that reads itself from a released `config.json`) and its PyTorch module.
`TARGETS` maps the names that released configs use to the config classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from jrt_eval.errors import nearest
from jrt_eval.kernels import TaylorState, WindowState
from jrt_eval.models.recurrent.mixers.attention import Attention, AttentionConfig, KVState
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts
from jrt_eval.models.recurrent.mixers.convolved_attention import ConvolvedState
from jrt_eval.models.recurrent.mixers.gated import GatedState
from jrt_eval.models.recurrent.mixers.mamba import MambaState
from jrt_eval.models.recurrent.mixers.short_convolution import ShortConvolution, ShortConvolutionConfig
from jrt_eval.models.recurrent.mixers.sliding_window import SlidingWindow, SlidingWindowConfig
from jrt_eval.models.recurrent.mixers.taylor_linear_attention import (
    LinearAttentionConfig,
    PrefixLinearAttentionConfig,
    TaylorLinearAttention,
)
from jrt_eval.models.recurrent.reading import Section, short

__all__ = [
    "TARGETS", "Attention", "AttentionConfig", "Call", "ConvolvedState", "KVState", "LinearAttentionConfig", "MambaState", "Mixer", "MixerConfig",
    "MixerState", "ModelFacts", "PrefixLinearAttentionConfig", "ShortConvolution", "ShortConvolutionConfig",
    "SlidingWindow", "SlidingWindowConfig", "TaylorLinearAttention", "read_mixer",
]  # fmt: skip

MixerState: TypeAlias = TaylorState | WindowState | MambaState | ConvolvedState | GatedState | KVState | Tensor

# last component of `_target_` -> the mixer
TARGETS: dict[str, type[MixerConfig]] = {
    "BaseConv": ShortConvolutionConfig,
    "BaseConvWithSiLU4": ShortConvolutionConfig,
    "LinearAttention": LinearAttentionConfig,
    "PrefixLinearAttention": PrefixLinearAttentionConfig,
    "SlidingAttention": SlidingWindowConfig,
    "SlidingsMHA": SlidingWindowConfig,
    "MHA": AttentionConfig,
}

# Options that choose an implementation, or that are read elsewhere: they do not change what a mixer computes.
_IGNORED = {
    "_target_", "_partial_", "implementation", "parallel_implementation", "recurrent_implementation", "train_view",
    "use_cuda", "use_flash_attn", "l_max", "do_update", "layer_idx", "kernel_sizes", "dec_length", "dropout",
    "attention_dropout", "device", "dtype", "checkpointing", "return_residual", "embed_dim", "d_model", "chunk_size",
    "use_mask",
}  # fmt: skip


def read_mixer(spec: Any, tag: str, facts: ModelFacts, source: str) -> MixerConfig:
    """The mixer that `spec`, the config's value of `tag`, describes; softmax attention where it is None.

    `_target_` is looked up by its last component and never imported. Raises `UserError` for anything unknown.
    """
    if spec is None:
        return AttentionConfig.read(Section({}, source), facts)
    top = Section({}, source)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise top.error(f"{tag} is {short(spec)}, it must be an object with a _target_")
    name = spec["_target_"].rsplit(".", 1)[-1]
    if name not in TARGETS:
        raise top.error(
            f"{tag} names {short(spec['_target_'])}, known mixers are {', '.join(TARGETS)}"
            + nearest(name, list(TARGETS))
        )
    section = Section(spec, source, f"{tag}.")
    section.read |= _IGNORED | {key for key in spec if str(key).startswith("fused_")}
    heads = section.integer("num_heads", facts.n_head)
    for key in ("num_key_value_heads", "num_heads_kv"):
        if (shared := section.get(key)) not in (None, heads):
            raise section.error(f"{key} is {short(shared)} and num_heads {heads}: shared key heads are not supported")
    section.read.discard("num_heads")
    mixer = TARGETS[name].read(section, facts)
    section.refuse_unread(name)
    return mixer
