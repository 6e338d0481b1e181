"""A released `config.json` as a dataclass.

The released files are flat GPT-2 style dicts whose mixers are named by dotted Python paths. Nothing here imports or
calls what a file names: `mixers.TARGETS` lists the known names, and anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jrt_eval.errors import nearest
from jrt_eval.models.recurrent.mixers import (
    LinearAttentionConfig,
    MixerConfig,
    ModelFacts,
    PrefixLinearAttentionConfig,
    read_mixer,
)
from jrt_eval.models.recurrent.mixers.base import Shape
from jrt_eval.models.recurrent.mixers.gated import GatedConfig
from jrt_eval.models.recurrent.reading import Section, short

GATED = ("swiglu", "geglu", "glu")
PLAIN = ("gelu", "gelu_new", "gelu_fast", "gelu_approx", "gelu_pytorch_tanh", "relu", "sqrelu")
MOST_LAYERS = 4096


@dataclass(frozen=True)
class ModelConfig:
    """A model's architecture, with every default of the released format filled in."""

    vocab_size: int  # as the file says, without padding rows
    padded_vocab_size: int
    d_model: int
    n_layer: int
    n_inner: int | None
    activation: str
    norm: Literal["rms", "layer"]
    norm_eps: float
    residual_in_fp32: bool
    fc1_bias: bool
    fc2_bias: bool
    tied: bool
    head_bias: bool
    positions: int  # rows of the position embedding table, 0 without one
    decay_const: float | None
    mixers: tuple[MixerConfig, ...]
    initializer_range: float = 0.02
    special_initializer: bool = False
    exact_inner: int | None = None  # the MLP's width as the weight file has it

    @property
    def enc_length(self) -> int:
        """M of the prefix layers, 0 without any."""
        # a list and no `default`: torch.compile traces through this
        return max([0, *(m.enc_length for m in self.mixers if isinstance(m, PrefixLinearAttentionConfig))])

    @property
    def decay_heads(self) -> int:
        """Heads of the layers with decay, 0 without any."""
        return max([0, *(m.num_heads for m in self.mixers if isinstance(m, LinearAttentionConfig) and m.decay)])

    @property
    def family(self) -> str:
        if gated := [mixer.kind for mixer in self.mixers if isinstance(mixer, GatedConfig)]:
            return gated[0]
        kinds = {mixer.kind for mixer in self.mixers}
        if "prefix_linear_attention" in kinds:
            return "jrt"
        if "linear_attention" in kinds:
            return "based"
        return "attn" if kinds == {"attention"} else "hybrid"

    @property
    def gated(self) -> bool:
        """Whether the MLP's first layer computes a gate as well as values."""
        return self.activation in GATED

    def inner(self) -> int:
        """Width of the MLP. Without a weight file: released models round n_inner to 256, 8/3 n_embd to 128."""
        if self.exact_inner is not None:
            return self.exact_inner
        if not self.gated:
            return self.n_inner or 4 * self.d_model
        width, multiple = (self.n_inner, 256) if self.n_inner else (int(8 * self.d_model / 3), 128)
        return -(-width // multiple) * multiple

    def complete(self, shape_of: Callable[[str], Shape | None]) -> ModelConfig:
        """This config with what only the weight file says; `shape_of` gives the shape of one of its tensors.

        The MLP's rounded width, how far a convolution expands, and whether it has a bias.
        """
        fc1 = shape_of("transformer.layers.0.mlp.fc1.weight")
        inner = fc1[0] // (2 if self.gated else 1) if fc1 and len(fc1) == 2 else None
        mixers = tuple(
            mixer.complete(lambda key, i=i: shape_of(f"transformer.layers.{i}.mixer.{key}"))  # type: ignore[misc]
            for i, mixer in enumerate(self.mixers)
        )
        return replace(self, mixers=mixers, exact_inner=inner)


# Switches of the released format for which only one value is supported: key -> allowed values, the default first.
_FIXED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "prenorm": (True,),
    "parallel_block": (False,),
    "mup_width_scale": (1.0,),
    "mup_embeddings_multiplier": (1.0,),
    "mup_output_multiplier": (1.0,),
    "rotary_emb_scale_base": (None, 0),
    "rotary_emb_interleaved": (False,),
    "word_embed_proj_dim": (None,),
    "attn_dwconv": (False,),
    "norm_head": (False,),
    "decay_denom": (False,),
    "mlp_type": ("base", None),
}


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read a released config of the JRT, Based and Transformer++ families.

    Raises `UserError` for any value whose arithmetic is not supported.
    """
    top = Section(raw, source)
    missing = [key for key in ("vocab_size", "n_embd", "n_layer", "n_head") if key not in raw]
    if missing:
        raise top.error(f"lacks {', '.join(missing)}: not a config of the JRT, Based or attention checkpoints")
    for key, allowed in _FIXED.items():
        top.only(key, *allowed, default=allowed[0])
    facts = _model_facts(top)
    vocab_size, multiple = top.size("vocab_size"), top.integer("pad_vocab_size_multiple", 1)
    activation = top.get("activation_function")
    if activation not in GATED + PLAIN:
        known = [*GATED, *PLAIN]
        close = nearest(str(activation)[:40], known)
        raise top.error(f"activation_function is {short(activation)}, known are {', '.join(known)}{close}")
    positions = "max_position_embeddings" if "max_position_embeddings" in raw else "n_positions"
    return ModelConfig(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=facts.d_model,
        n_layer=top.size("n_layer", MOST_LAYERS),
        n_inner=top.integer("n_inner"),
        activation=activation,
        norm="rms" if top.flag("rms_norm", False) else "layer",
        norm_eps=top.number("layer_norm_epsilon", 1e-5, 0, 1, above=True),
        residual_in_fp32=top.flag("residual_in_fp32", False),
        fc1_bias=top.flag("mlp_fc1_bias", True),
        fc2_bias=top.flag("mlp_fc2_bias", True),
        tied=top.flag("tie_word_embeddings", True),
        head_bias=top.flag("lm_head_bias", False),
        positions=top.integer(positions, 0, low=0),
        decay_const=top.number("decay_const", high=0),
        mixers=_read_mixers(top, facts),
        initializer_range=top.number("initializer_range", 0.02, 0),
        special_initializer=top.flag("special_initializer", False),
    )


def _model_facts(top: Section) -> ModelFacts:
    d_model, n_head = top.size("n_embd"), top.size("n_head")
    kv_heads = top.integer("n_head_kv")
    if kv_heads not in (None, n_head):
        raise top.error(f"n_head_kv is {kv_heads} and n_head {n_head}: shared key heads are not supported")
    return ModelFacts(
        d_model=d_model,
        n_head=n_head,
        head_dim=top.integer("head_dim", d_model // n_head, low=0),
        rotary_fraction=top.number("rotary_emb_fraction", 0.0, 0, 1),
        rotary_base=top.number("rotary_emb_base", 10000.0, 0, above=True),
        qkv_bias=top.flag("qkv_proj_bias", True),
        out_bias=top.flag("out_proj_bias", True),
        fixed_decay=top.flag("fixed_decay", False),
        enc_length=top.integer("enc_length"),
    )


def _read_mixers(top: Section, facts: ModelFacts) -> tuple[MixerConfig, ...]:
    def layers(key: str) -> set[int]:
        value = top.get(key) or []
        if not isinstance(value, (list, tuple)) or any(not isinstance(i, int) for i in value):
            raise top.error(f"{key} is {short(value)}, it must be a list of layer indices")
        return set(value)

    first, second = layers("alt_mixer_layers"), layers("alt_mixer_2_layers")
    # alt_mixer_2 wins where an index is in both lists
    tags = [
        "alt_mixer_2" if i in second else "alt_mixer" if i in first else "mixer"
        for i in range(top.size("n_layer", MOST_LAYERS))
    ]
    parsed = {tag: read_mixer(top.get(tag), tag, facts, top.source) for tag in sorted(set(tags))}
    if len({m.enc_length for m in parsed.values() if isinstance(m, PrefixLinearAttentionConfig)}) > 1:
        raise top.error("its prefix layers have different enc_length: a prompt cannot be padded for both")
    return tuple(parsed[tag] for tag in tags)
