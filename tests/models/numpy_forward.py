"""The released models' arithmetic in plain NumPy, float64, token by token loops and all: written from the published
description of the checkpoints, and sharing nothing with the package.

`weights(config, rng)` draws a file's tensors by its key names, `forward(config, weights, ids)` computes its logits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

erf = np.vectorize(math.erf)
GATED = {
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "glu": lambda x: 1 / (1 + np.exp(-x)),
}
PLAIN = {
    "gelu": GATED["geglu"],
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "sqrelu": lambda x: np.maximum(x, 0) ** 2,
}


def mixer_of(config: dict[str, Any], layer: int) -> dict[str, Any] | None:
    """The layer's mixer as the config has it, None for softmax attention."""
    if layer in config.get("alt_mixer_2_layers", []):
        return config.get("alt_mixer_2")
    if layer in config.get("alt_mixer_layers", []):
        return config.get("alt_mixer")
    return config.get("mixer")


def kind_of(mixer: dict[str, Any] | None) -> str:
    name = "" if mixer is None else mixer["_target_"].split(".")[-1]
    return {"": "attention", "MHA": "attention", "BaseConv": "conv", "BaseConvWithSiLU4": "conv", "LinearAttention": "linear",
            "PrefixLinearAttention": "prefix", "SlidingAttention": "window", "SlidingsMHA": "window"}[name]  # fmt: skip


def rows(config: dict[str, Any]) -> int:
    multiple = config.get("pad_vocab_size_multiple", 1)
    return math.ceil(config["vocab_size"] / multiple) * multiple


def decays(config: dict[str, Any], mixer: dict[str, Any]) -> bool:
    return bool(config.get("fixed_decay") and mixer.get("use_decay_proj"))


# --- what a file holds


def shapes(config: dict[str, Any], inner: int, conv_bias: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor that a file of this config holds, without `model.` in front."""
    d, heads, made = config["n_embd"], config["n_head"], {}

    def linear(name: str, out: int, given: int, bias: bool) -> None:
        made[f"{name}.weight"] = (out, given)
        if bias:
            made[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        made[f"{name}.weight"] = (d,)
        if not config.get("rms_norm"):
            made[f"{name}.bias"] = (d,)

    made["transformer.embeddings.word_embeddings.weight"] = (rows(config), d)
    if positions := config.get("max_position_embeddings", config.get("n_positions", 0)):
        made["transformer.embeddings.position_embeddings.weight"] = (positions, d)
    for layer in range(config["n_layer"]):
        at, mixer = f"transformer.layers.{layer}", mixer_of(config, layer)
        kind = kind_of(mixer)
        if kind == "conv":
            assert mixer is not None
            e, bias = mixer["expand_proj"], mixer.get("use_bias", True)
            linear(f"{at}.mixer.in_proj", e * d, d, bias)
            made[f"{at}.mixer.conv.conv.weight"] = (e * d // 2, 1, mixer.get("kernel_size", 3))
            if conv_bias:
                made[f"{at}.mixer.conv.conv.bias"] = (e * d // 2,)
            linear(f"{at}.mixer.out_proj", d, e * d // 2, bias)
        elif kind in ("linear", "prefix"):
            assert mixer is not None
            h, f = mixer.get("num_heads", heads), mixer.get("feature_dim", 16)
            values = h * mixer.get("head_dim", d // h)
            for name, out in (("q", h * f), ("k", h * f), ("v", values)):
                linear(f"{at}.mixer.proj_{name}", out, d, False)
            if kind == "prefix":
                linear(f"{at}.mixer.proj_k_enc", h * f, d, False)
                linear(f"{at}.mixer.proj_v_enc", values, d, False)
            if decays(config, mixer):
                linear(f"{at}.mixer.decay_proj", h, d, False)
            linear(f"{at}.mixer.out_proj", d, values, False)
        else:
            linear(f"{at}.mixer.Wqkv", 3 * d, d, config.get("qkv_proj_bias", True))
            linear(f"{at}.mixer.out_proj", d, d, config.get("out_proj_bias", True))
        norm(f"{at}.norm1")
        linear(f"{at}.mlp.fc1", inner * (2 if config["activation_function"] in GATED else 1), d, config.get("mlp_fc1_bias", True))  # fmt: skip
        linear(f"{at}.mlp.fc2", d, inner, config.get("mlp_fc2_bias", True))
        norm(f"{at}.norm2")
    norm("transformer.ln_f")
    made["lm_head.weight"] = (rows(config), d)
    if config.get("lm_head_bias"):
        made["lm_head.bias"] = (rows(config),)
    return made


def weights(config: dict[str, Any], rng: np.random.Generator, inner: int, conv_bias: bool = False) -> Arrays:
    """Random tensors of a file, large enough that every part of the arithmetic shows in the logits."""
    made: Arrays = {}
    for name, shape in shapes(config, inner, conv_bias).items():
        if "norm" in name or "ln_f" in name:
            made[name] = rng.normal(float(name.endswith("weight")), 0.2, shape)
        else:
            made[name] = rng.normal(0, 0.3 if len(shape) == 1 else 1 / math.sqrt(shape[-1]), shape)
    if config.get("tie_word_embeddings", True):
        made["lm_head.weight"] = made["transformer.embeddings.word_embeddings.weight"]
    if config.get("fixed_decay"):
        made["transformer.decay.decay"] = np.log(decay(config))
    return {name: value.astype(np.float32) for name, value in made.items()}


def decay(config: dict[str, Any]) -> np.ndarray:
    return 1 - 2.0 ** (config["decay_const"] - np.arange(config["n_head"]))


# --- what they mean


def phi(x: np.ndarray) -> np.ndarray:
    """(..., d) -> (..., 1 + d + d^2)"""
    d = x.shape[-1]
    outer = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], d * d)
    return np.concatenate([np.ones_like(x[..., :1]), x / d**0.25, outer / math.sqrt(2 * d)], -1)


def rotated(x: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """x (length, heads, head_dim) with rotary positions 0, 1, ..."""
    r = int(config.get("rotary_emb_fraction", 0) * x.shape[-1])
    if not r:
        return x
    y, base = x.copy(), config.get("rotary_emb_base", 10000)
    frequencies = [base ** (-i / r) for i in range(0, r, 2)]
    half = len(frequencies)
    for position in range(len(x)):
        for j, frequency in enumerate(frequencies):
            c, s = math.cos(position * frequency), math.sin(position * frequency)
            first, second = x[position, :, j], x[position, :, half + j]
            y[position, :, j], y[position, :, half + j] = first * c - second * s, first * s + second * c
    return y


def attention(x: np.ndarray, w: Any, config: dict[str, Any], back: int | None) -> np.ndarray:
    """Softmax attention over all earlier tokens, or over `back` of them and the token itself."""
    n, d = x.shape
    h = config["n_head"]
    q, k, v = w("Wqkv", x).reshape(n, 3, h, d // h).transpose(1, 0, 2, 3)
    q, k = rotated(q, config), rotated(k, config)
    y = np.zeros((n, h, d // h))
    for i in range(n):
        first = 0 if back is None else max(0, i - back)
        for head in range(h):
            s = k[first : i + 1, head] @ q[i, head] / math.sqrt(d // h)
            p = np.exp(s - s.max())
            y[i, head] = p / p.sum() @ v[first : i + 1, head]
    return w("out_proj", y.reshape(n, d))


def convolution(x: np.ndarray, w: Any) -> np.ndarray:
    a, b = np.split(w("in_proj", x), 2, -1)
    kernel = w.get("conv.conv.weight")[:, 0]  # (channels, width)
    width = kernel.shape[1]
    padded = np.concatenate([np.zeros((width - 1, a.shape[1])), a])
    c = np.stack([(padded[i : i + width] * kernel.T).sum(0) for i in range(len(a))])
    c = c + w.get("conv.conv.bias", 0)
    return w("out_proj", c / (1 + np.exp(-c)) * b)


def linear_attention(x: np.ndarray, w: Any, config: dict[str, Any], mixer: dict[str, Any], prefix: bool, pads: int,
                     encode: bool) -> np.ndarray:  # fmt: skip
    n = len(x)
    h, f = mixer.get("num_heads", config["n_head"]), mixer.get("feature_dim", 16)
    q, k = w("proj_q", x).reshape(n, h, f), w("proj_k", x).reshape(n, h, f)
    v = w("proj_v", x).reshape(n, h, -1)
    zeroed = pads if prefix and mixer.get("use_mask", True) else 0
    k[:zeroed] = 0
    m = min(mixer.get("enc_length") or config["enc_length"], n) if prefix and encode else 0
    if m:
        ke, ve = w("proj_k_enc", x[:m]).reshape(m, h, f), w("proj_v_enc", x[:m]).reshape(m, h, -1)
        ke[:zeroed] = 0
    y = np.zeros(v.shape)
    for head in range(h):
        fq, fk = phi(q[:, head]), phi(k[:, head])
        for i in range(n):
            a = fk[: i + 1] @ fq[i]
            top, bottom = a @ v[: i + 1, head], a.sum()
            if decays(config, mixer):
                shrink = decay(config)[head] ** np.arange(i, -1, -1)
                top = (a * shrink) @ v[: i + 1, head] * w("decay_proj", x[i : i + 1])[0, head]
            if m:
                ae = phi(ke[:, head]) @ fq[i]
                top, bottom = top + ae @ ve[:, head], bottom + ae.sum()
            y[i, head] = top / (bottom + 1e-12)
    return w("out_proj", y.reshape(n, -1))


class Layer:
    """`layer("fc1", x)` applies a linear map of the file, `layer.get(name)` gives a tensor."""

    def __init__(self, tensors: Arrays, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self.tensors.get(f"{self.prefix}.{name}", otherwise)

    def __call__(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias", 0)


def forward(config: dict[str, Any], tensors: Arrays, ids: list[int], pads: int = 0, encode: bool = True) -> np.ndarray:
    """Logits (length, vocabulary rows) of one sequence, whose first `pads` tokens are left padding."""
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        eps, weight = config.get("layer_norm_epsilon", 1e-5), tensors[f"{name}.weight"]
        if config.get("rms_norm"):
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight + tensors[f"{name}.bias"]

    r = tensors["transformer.embeddings.word_embeddings.weight"][ids]
    if (table := tensors.get("transformer.embeddings.position_embeddings.weight")) is not None:
        r = r + table[: len(ids)]
    for i in range(config["n_layer"]):
        at, mixer = f"transformer.layers.{i}", mixer_of(config, i)
        kind, x, w = kind_of(mixer), norm(r, f"{at}.norm1"), Layer(tensors, f"{at}.mixer")
        if kind == "conv":
            r = r + convolution(x, w)
        elif kind in ("attention", "window"):
            r = r + attention(x, w, config, mixer["window_size"] // 2 if mixer and kind == "window" else None)
        else:
            assert mixer is not None
            r = r + linear_attention(x, w, config, mixer, kind == "prefix", pads, encode)
        x, w = norm(r, f"{at}.norm2"), Layer(tensors, f"{at}.mlp")
        hidden = w("fc1", x)
        if config["activation_function"] in GATED:
            up, gate = np.split(hidden, 2, -1)
            hidden = GATED[config["activation_function"]](gate) * up
        else:
            hidden = PLAIN[config["activation_function"]](hidden)
        r = r + w("fc2", hidden)
    head = Layer(tensors, "lm_head")
    return norm(r, "transformer.ln_f") @ head.get("weight").T + head.get("bias", 0)
