"""A released `config.json` as plain facts about each layer.

The released files are flat GPT-2 style dicts whose mixers are named by dotted Python paths. Nothing here imports or
calls what a file names: the last component of the path is looked up in `MIXERS`, and what is not known is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jrt_eval.errors import UserError, nearest

log = logging.getLogger(__name__)

MixerKind = Literal["convolution", "linear_attention", "prefix_linear_attention", "sliding_window", "attention"]

# last component of `_target_` -> what it computes
MIXERS: dict[str, MixerKind] = {
    "BaseConv": "convolution",
    "BaseConvWithSiLU4": "convolution",
    "LinearAttention": "linear_attention",
    "PrefixLinearAttention": "prefix_linear_attention",
    "SlidingAttention": "sliding_window",
    "SlidingsMHA": "sliding_window",
    "MHA": "attention",
}

# options of a mixer that say how, not what, it computes, or that are read elsewhere
_IGNORED = {
    "_target_",
    "_partial_",
    "implementation",
    "parallel_implementation",
    "recurrent_implementation",
    "train_view",
    "use_cuda",
    "use_flash_attn",
    "l_max",
    "do_update",
    "layer_idx",
    "kernel_sizes",
    "dec_length",
    "dropout",
    "attention_dropout",
    "device",
    "dtype",
    "checkpointing",
    "return_residual",
    "embed_dim",
    "d_model",
    "chunk_size",
}


GATED = ("swiglu", "geglu", "glu")
PLAIN = ("gelu", "gelu_new", "gelu_fast", "gelu_approx", "gelu_pytorch_tanh", "relu", "sqrelu")


@dataclass(frozen=True)
class MixerConfig:
    """One layer's sequence mixer; fields that its kind does not use keep their defaults."""

    kind: MixerKind
    num_heads: int = 1
    head_dim: int = 0
    bias_in: bool = False  # in_proj, Wqkv
    bias_out: bool = False  # out_proj
    expand: int | None = 4  # convolution: in_proj maps d to expand * d; None: the file's in_proj says
    kernel_size: int = 3
    window: int = 0  # keys that a query sees, itself included
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    feature_dim: int = 16
    enc_length: int = 0  # M: positions that the prefix encoder reads
    mask_pads: bool = True  # k and ke of left padding are zeroed
    decay: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """What the arithmetic needs, with every default of the released format filled in."""

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

    @property
    def enc_length(self) -> int:
        """M of the prefix layers, 0 without any."""
        # a list and no `default`: torch.compile traces through this
        return max([0, *(m.enc_length for m in self.mixers if m.kind == "prefix_linear_attention")])

    @property
    def family(self) -> str:
        kinds = {mixer.kind for mixer in self.mixers}
        if "prefix_linear_attention" in kinds:
            return "jrt"
        if "linear_attention" in kinds:
            return "based"
        return "attn" if kinds == {"attention"} else "hybrid"

    @property
    def gated(self) -> bool:
        """Whether the MLP's first layer gives a gate beside the values."""
        return self.activation in GATED

    def inner(self) -> int:
        """Width of the MLP where no weights say it: released files round n_inner to 256, 8/3 n_embd to 128."""
        if not self.gated:
            return self.n_inner or 4 * self.d_model
        width, multiple = (self.n_inner, 256) if self.n_inner else (int(8 * self.d_model / 3), 128)
        return -(-width // multiple) * multiple


def read_config(path: str | Path) -> dict[str, Any]:
    """`config.json` at `path` (the file or its folder) as a dict."""
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a JSON {type(config).__name__}, a model's config is an object")
    return config


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read a released config of the JRT, Based and Transformer++ families.

    Raises `UserError` for any value whose arithmetic is not known here.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{source}: {what}")

    def integer(key: str, value: Any, low: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < low:
            raise refuse(f"{key} is {value!r}, a whole number of at least {low} is needed")
        return int(value)

    def must(key: str, default: Any, *allowed: Any) -> None:
        if raw.get(key, default) not in allowed:
            raise refuse(f"{key} is {raw[key]!r}, only {' or '.join(map(repr, allowed))} is known")

    missing = [key for key in ("vocab_size", "n_embd", "n_layer", "n_head") if key not in raw]
    if missing:
        raise refuse(f"lacks {', '.join(missing)}: not a config of the JRT, Based or attention checkpoints")
    positions = raw.get("max_position_embeddings", raw.get("n_positions", 0))
    must("scale_attn_weights", True, True)
    must("scale_attn_by_inverse_layer_idx", False, False)
    must("prenorm", True, True)
    must("parallel_block", False, False)
    must("mup_width_scale", 1.0, 1.0)
    must("mup_embeddings_multiplier", 1.0, 1.0)
    must("mup_output_multiplier", 1.0, 1.0)
    must("rotary_emb_scale_base", None, None, 0)
    must("rotary_emb_interleaved", False, False)
    must("word_embed_proj_dim", None, None)
    must("attn_dwconv", False, False)
    must("norm_head", False, False)
    must("decay_denom", False, False)
    must("mlp_type", "base", "base", None)

    d_model = integer("n_embd", raw["n_embd"])
    n_layer = integer("n_layer", raw["n_layer"])
    n_head = integer("n_head", raw["n_head"])
    vocab_size = integer("vocab_size", raw["vocab_size"])
    multiple = integer("pad_vocab_size_multiple", raw.get("pad_vocab_size_multiple", 1))
    kv_heads = raw.get("n_head_kv")
    if kv_heads is not None and kv_heads != n_head:
        raise refuse(f"n_head_kv is {kv_heads!r} beside n_head {n_head}: shared key heads are not known")
    activation = raw.get("activation_function")
    if activation not in GATED + PLAIN:
        known = [*GATED, *PLAIN]
        raise refuse(
            f"activation_function is {activation!r}, known are {', '.join(known)}" + nearest(str(activation), known)
        )

    head_dim = d_model // n_head if raw.get("head_dim") is None else integer("head_dim", raw["head_dim"])
    fraction = raw.get("rotary_emb_fraction", 0.0)
    if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise refuse(f"rotary_emb_fraction is {fraction!r}, a number from 0 to 1 is needed")
    rotary_dim = int(fraction * head_dim)
    rotary_base = float(raw.get("rotary_emb_base", 10000.0))
    qkv_bias, out_bias = bool(raw.get("qkv_proj_bias", True)), bool(raw.get("out_proj_bias", True))

    def heads_fit() -> None:
        """What softmax attention needs of the top level's heads; other mixers have their own."""
        if head_dim * n_head != d_model:
            given = "" if raw.get("head_dim") is None else f" times head_dim {head_dim}"
            raise refuse(f"n_embd {d_model} is no multiple of n_head {n_head}{given}")
        if rotary_dim % 2 and rotary_dim == head_dim:
            raise refuse(
                f"rotary_emb_fraction {fraction} of head_dim {head_dim} is odd: one dim more would rotate than is"
            )

    def mixer(spec: Any, tag: str) -> MixerConfig:
        attention = MixerConfig(
            "attention",
            n_head,
            head_dim,
            bias_in=qkv_bias,
            bias_out=out_bias,
            rotary_dim=rotary_dim,
            rotary_base=rotary_base,
        )
        if spec is None:
            heads_fit()
            return attention
        if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
            raise refuse(f"{tag} is {spec!r}, an object with a _target_ is needed")
        name = spec["_target_"].rsplit(".", 1)[-1]
        if name not in MIXERS:
            raise refuse(
                f"{tag} names {spec['_target_']!r}, known mixers are {', '.join(MIXERS)}" + nearest(name, list(MIXERS))
            )
        kind = MIXERS[name]
        options = {k: v for k, v in spec.items() if k not in _IGNORED and not k.startswith("fused_")}

        def take(key: str, default: Any) -> Any:
            return options.pop(key, default)

        def unused() -> None:
            left = sorted(k for k, v in options.items() if v is not None)
            if left:
                raise refuse(f"{tag} ({name}) has {', '.join(f'{k}={options[k]!r}' for k in left)}, which is not known")

        if kind == "convolution":
            bias = bool(take("use_bias", True))
            expand = take("expand_proj", None)
            result = MixerConfig(
                kind,
                bias_in=bias,
                bias_out=bias,
                expand=None if expand is None else integer(f"{tag}.expand_proj", expand),
                kernel_size=integer(f"{tag}.kernel_size", take("kernel_size", 3)),
            )
            take("conv_bias", None)  # the file's keys say whether there is one
            if (result.expand or 0) * d_model % 2:
                raise refuse(f"{tag}: expand_proj {result.expand} times n_embd {d_model} does not split in two")
            unused()
            return result

        heads = integer(f"{tag}.num_heads", take("num_heads", n_head))
        for key in ("num_key_value_heads", "num_heads_kv"):
            if (kv := take(key, None)) not in (None, heads):
                raise refuse(f"{tag}.{key} is {kv!r} beside num_heads {heads}: shared key heads are not known")
        mask_pads = bool(take("use_mask", True))  # only read by prefix linear attention
        if kind in ("sliding_window", "attention"):
            heads_fit()
            if not take("causal", True):
                raise refuse(f"{tag}.causal is false: attention that sees later tokens cannot generate")
            if take("cross_attn", False):
                raise refuse(f"{tag}.cross_attn is true: cross attention is not known")
            if heads != n_head:
                # as in the released code, which takes this mixer's heads from the top level
                log.warning("%s: %s.num_heads is %s, n_head %s is used", source, tag, heads, n_head)
            for key, value in (
                ("rotary_emb_dim", rotary_dim),
                ("rotary_emb_base", rotary_base),
                ("rotary_emb_fraction", fraction),
                ("rotary_emb_interleaved", False),
                ("rotary_emb_scale_base", None),
                ("softmax_scale", None),
            ):
                given = take(key, None)
                if given is not None and given != value:
                    raise refuse(f"{tag}.{key} is {given!r}, the model's own value {value!r} is needed")
            window = 0
            if kind == "sliding_window":
                size = take("window_size", None)
                if size is None:
                    raise refuse(f"{tag} ({name}) has no window_size")
                window = integer(f"{tag}.window_size", size) // 2 + 1
            bias_in, bias_out = take("qkv_proj_bias", qkv_bias), take("out_proj_bias", out_bias)
            unused()
            return MixerConfig(
                kind,
                n_head,
                head_dim,
                bias_in=bool(bias_in),
                bias_out=bool(bias_out),
                window=window,
                rotary_dim=rotary_dim,
                rotary_base=rotary_base,
            )

        given_dim = take("head_dim", None)
        if given_dim is None and d_model % heads:
            raise refuse(f"{tag}: n_embd {d_model} is no multiple of num_heads {heads}")
        value_dim = d_model // heads if given_dim is None else integer(f"{tag}.head_dim", given_dim)
        if kind == "prefix_linear_attention" and value_dim * heads != d_model:
            raise refuse(f"{tag}.head_dim is {value_dim}, n_embd / num_heads = {d_model / heads:g} is needed")
        eps = take("eps", 1e-12)
        if not isinstance(eps, (int, float)) or not 0 <= eps <= 1e-9:
            raise refuse(f"{tag}.eps is {eps!r}: only the release's 1e-12 is known")
        feature_dim = integer(f"{tag}.feature_dim", take("feature_dim", 16))
        feature_map = take("feature_map", None)
        if feature_map is not None:
            if not isinstance(feature_map, Mapping) or not isinstance(feature_map.get("_target_"), str):
                raise refuse(f"{tag}.feature_map is {feature_map!r}, an object with a _target_ is needed")
            if feature_map["_target_"].rsplit(".", 1)[-1] != "TaylorExp":
                raise refuse(f"{tag}.feature_map names {feature_map['_target_']!r}, only TaylorExp is known")
            for key in ("input_dim", "scale_dim"):
                if feature_map.get(key) not in (None, feature_dim):
                    raise refuse(f"{tag}.feature_map.{key} is {feature_map[key]!r} beside feature_dim {feature_dim}")
        if (feature_name := take("feature_name", "taylor_exp")) != "taylor_exp":
            raise refuse(f"{tag}.feature_name is {feature_name!r}, only 'taylor_exp' is known")
        if (scale_dim := take("scale_dim", None)) not in (None, feature_dim):
            raise refuse(f"{tag}.scale_dim is {scale_dim!r} beside feature_dim {feature_dim}")
        projected, fixed = bool(take("use_decay_proj", False)), bool(raw.get("fixed_decay", False))
        if projected and kind == "prefix_linear_attention":
            raise refuse(f"{tag}.use_decay_proj: decay is not known for {name}")
        if projected and not fixed:
            raise refuse(f"{tag}.use_decay_proj is true and fixed_decay is not: decay is known with both only")
        if projected and heads != n_head:
            raise refuse(f"{tag}.num_heads is {heads} beside n_head {n_head}, which says how many decays there are")
        enc_length = 0
        if kind == "prefix_linear_attention":
            given = take("enc_length", raw.get("enc_length"))
            if given is None:
                raise refuse(f"{tag} ({name}) has no enc_length, nor has the top level")
            enc_length = integer(f"{tag}.enc_length", given)
        unused()
        return MixerConfig(
            kind,
            heads,
            value_dim,
            feature_dim=feature_dim,
            enc_length=enc_length,
            mask_pads=mask_pads,
            decay=projected,
        )

    def layers(key: str) -> set[int]:
        value = raw.get(key) or []
        if not isinstance(value, (list, tuple)) or any(not isinstance(i, int) for i in value):
            raise refuse(f"{key} is {value!r}, a list of layer indices is needed")
        return set(value)

    first, second = layers("alt_mixer_layers"), layers("alt_mixer_2_layers")
    # alt_mixer_2 wins where an index stands in both lists
    tags = ["alt_mixer_2" if i in second else "alt_mixer" if i in first else "mixer" for i in range(n_layer)]
    parsed = {tag: mixer(raw.get(tag), tag) for tag in set(tags)}
    mixers = tuple(parsed[tag] for tag in tags)
    if len({m.enc_length for m in mixers if m.kind == "prefix_linear_attention"}) > 1:
        raise refuse("its prefix layers have different enc_length: a prompt cannot be padded for both")

    return ModelConfig(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=d_model,
        n_layer=n_layer,
        n_inner=None if raw.get("n_inner") is None else integer("n_inner", raw["n_inner"]),
        activation=activation,
        norm="rms" if raw.get("rms_norm", False) else "layer",
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        residual_in_fp32=bool(raw.get("residual_in_fp32", False)),
        fc1_bias=bool(raw.get("mlp_fc1_bias", True)),
        fc2_bias=bool(raw.get("mlp_fc2_bias", True)),
        tied=bool(raw.get("tie_word_embeddings", True)),
        head_bias=bool(raw.get("lm_head_bias", False)),
        positions=0 if not positions else integer("max_position_embeddings", positions),
        decay_const=None if raw.get("decay_const") is None else float(raw["decay_const"]),
        mixers=mixers,
        initializer_range=float(raw.get("initializer_range", 0.02)),
        special_initializer=bool(raw.get("special_initializer", False)),
    )
