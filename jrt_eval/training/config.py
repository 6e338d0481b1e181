"""The keys of a training configuration: every key of the YAML file is a field of a dataclass here or in data/config.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jrt_eval.data.config import Data
from jrt_eval.data.synthetic import options_of
from jrt_eval.errors import UserError

# Upper limits of a model's sizes, far above any real one: a typing error must not fill the memory.
_LARGEST_SIZES = {
    **dict.fromkeys(("n_layer", "n_head"), 4096),
    **dict.fromkeys(("n_embd", "d_model", "n_inner"), 1 << 18),
    **dict.fromkeys(("vocab_size", "pad_vocab_size_multiple"), 1 << 24),
}
_MOST_PARAMETERS = 10**11


@dataclass
class Objective:
    """The loss. `ntp`: next-token prediction at every position. `jrt`: NTP + mlm_weight * masked-token prediction.

    With `jrt` (arXiv 2407.05483, section 4) each token among the first M is masked with probability mask_probability;
    the masked-token loss covers those and the next-token loss the positions from M on. M is the model's encoder length.

    boundary: the next-token loss also covers position M-1, which predicts token M. A prompt that was padded to exactly M
        tokens is answered there, so models that learn from prompts need it.
    tail: in batches shorter than M + tail the encoder reads all but `tail` positions (0: always M).
    context_weight: loss weight of tokens that belong to no answer, in rows with answers (1: all tokens count alike).
    per_row: scale the weights so that every row has the same total weight.
    """

    kind: Literal["ntp", "jrt"] = "ntp"
    mlm_weight: float = 0.25
    mask_probability: float = 0.15
    mask_token_id: int = 50263
    boundary: bool = False
    tail: int = 0
    context_weight: float = 1.0
    per_row: bool = False

    def __post_init__(self) -> None:
        _require(
            0 <= self.mask_probability <= 1, "objective.mask_probability: must be from 0 to 1", self.mask_probability
        )
        _require(self.mask_token_id >= 0, "objective.mask_token_id: must be at least 0", self.mask_token_id)
        _require(self.tail >= 0, "objective.tail: must be at least 0", self.tail)
        for name in ("mlm_weight", "context_weight"):
            _require(0 <= getattr(self, name) <= 1e6, f"objective.{name}: must be from 0 to 10^6", getattr(self, name))


@dataclass
class Optimizer:
    """AdamW with a linear warm-up and a cosine decay to `min_lr`.

    warmup: share of the steps. clip: largest gradient norm. Biases, norms and other vectors have no weight decay.
    """

    lr: float = 8e-4
    min_lr: float = 8e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.lr <= 100, "optimizer.lr: must be above 0 and at most 100", self.lr)
        _require(0 <= self.min_lr <= self.lr, "optimizer.min_lr: must be from 0 to lr", self.min_lr)
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas: must be from 0 to below 1", self.betas)
        _require(0 < self.eps <= 1, "optimizer.eps: must be above 0 and at most 1", self.eps)
        _require(0 <= self.weight_decay <= 100, "optimizer.weight_decay: must be from 0 to 100", self.weight_decay)
        _require(0 <= self.warmup <= 1, "optimizer.warmup: a share of the steps, from 0 to 1", self.warmup)
        _require(self.clip > 0, "optimizer.clip: must be above 0", self.clip)


@dataclass
class Config:
    """A training run.

    model: a config.json in the released form, as a mapping (docs/models.md).
    micro_batch: rows per forward pass; gradients are accumulated. None: the whole batch.
    curriculum: share of the steps over which the data's lengths are introduced, shortest first (0: all from the start).
    init_from: a checkpoint folder whose weights the run starts with (`jrt_eval.training.starting_weights`).
    output: folder of the checkpoints and metrics; keep: how many checkpoints stay.
    """

    output: str
    model: dict[str, Any]
    data: Data
    steps: int
    batch_size: int
    tokenizer: str | None = None
    micro_batch: int | None = None
    validation: Data | None = None
    validate_every: int = 500
    validation_batches: int = 8
    curriculum: float = 0.0
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    precision: Literal["bf16", "fp32"] = "bf16"
    backend: str = "torch"
    compile: bool = False
    seed: int = 0
    init_from: str | None = None
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    tensorboard: bool = True
    cache: str = "runs/tokens"
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def check(self) -> None:
        """Raise `UserError` for combinations that cannot be trained."""
        self._check_numbers()
        for name, data in (("data", self.data), ("validation", self.validation)):
            if data is not None:
                data.check(name)
                if data.synthetic is not None:
                    options_of(data.synthetic)
                if data.is_text and self.tokenizer is None:
                    raise UserError(f"tokenizer: {name} is text and needs one: a folder, a hub id, or mini")
        check_model(self.model)
        self._check_lengths()

    def _check_numbers(self) -> None:
        for name in ("steps", "batch_size", "save_every", "keep", "log_every", "validate_every", "validation_batches"):
            _require(getattr(self, name) >= 1, f"{name}: must be at least 1", getattr(self, name))
        _require(self.seed >= 0, "seed: must be at least 0", self.seed)
        _require(0 <= self.curriculum <= 1, "curriculum: a share of the steps, from 0 to 1", self.curriculum)
        for name in ("steps", "batch_size"):
            _require(getattr(self, name) <= 10**9, f"{name}: must be at most 10^9", getattr(self, name))
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise UserError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        for name in ("output", "cache", "backend", "init_from"):
            text = getattr(self, name)
            if text is not None and (not text or "\0" in text):
                raise UserError(f"{name}: {text!r} is not a name; leave the key out for the default")

    def _check_lengths(self) -> None:
        longest = max(self.data.lengths)
        _require(
            self.batch_size * longest <= 1 << 30,
            "batch_size: times the longest length it exceeds 2^30",
            self.batch_size,
        )
        window = self.model.get("max_position_embeddings") or self.model.get("n_positions") or 0
        if window and longest > window:
            raise UserError(
                f"data.lengths: {longest} is longer than the model's window of {window} positions; shorten it, or "
                "set max_position_embeddings to 0 (these models have no position table)"
            )
        if self.objective.kind != "jrt":
            return
        encoder = encoder_length(self.model)
        if encoder is None:
            raise UserError("objective.kind: jrt needs a model with a PrefixLinearAttention mixer")
        if longest <= encoder:
            raise UserError(
                f"data.lengths: {longest} leaves nothing to predict after the encoder's {encoder} tokens (enc_length)"
            )
        shortest = min(self.data.lengths)
        _require(
            self.objective.tail < shortest, f"objective.tail: must be below the length {shortest}", self.objective.tail
        )
        rows = padded_vocabulary(self.model)
        if rows is not None and self.objective.mask_token_id >= rows:
            raise UserError(
                f"objective.mask_token_id: {self.objective.mask_token_id} is outside of the model's {rows} rows; "
                "take a padding row of the vocabulary"
            )


def check_model(model: dict[str, Any]) -> None:
    """Raise `UserError` for sizes of a config.json that are no sizes, or that no machine can hold."""
    for key in (*_LARGEST_SIZES, "max_position_embeddings", "n_positions"):
        value, largest = model.get(key), _LARGEST_SIZES.get(key, 1 << 31)
        smallest = 1 if key in _LARGEST_SIZES else 0
        if value is not None and (type(value) is not int or not smallest <= value <= largest):
            raise UserError(f"model.{key}: must be an integer from {smallest} to {largest}, got {value!r}")
    if "d_model" in model and "n_embd" not in model:
        _check_mamba(model)
    width, layers = model.get("n_embd") or model.get("d_model") or 1, model.get("n_layer") or 1
    inner = model.get("n_inner") or 4 * width
    estimate = width * (model.get("vocab_size") or 1) + layers * width * (4 * width + 3 * inner)
    if estimate > _MOST_PARAMETERS:
        raise UserError(f"model: it has about {estimate / 1e9:,.0f} billion parameters; check its sizes")
    for key in ("alt_mixer_layers", "alt_mixer_2_layers"):
        chosen = model.get(key) or []
        if not isinstance(chosen, list) or any(type(n) is not int for n in chosen):
            raise UserError(f"model.{key}: expected a list of layer numbers, got {chosen!r}")
        absent = [n for n in chosen if n not in range(layers)]
        if absent:
            raise UserError(f"model.{key}: {absent[0]} is not one of the {layers} layers, which are counted from 0")


def _check_mamba(model: dict[str, Any]) -> None:
    """The keys of the mamba_ssm layout."""
    missing = [key for key in ("d_model", "n_layer", "vocab_size") if model.get(key) is None]
    if missing:
        raise UserError(f"model: a Mamba model needs {', '.join(missing)}")
    ssm = model.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        raise UserError(f"model.ssm_cfg: expected keys and values, got {ssm!r}")
    for key in ("d_state", "d_conv", "expand", "dt_rank"):
        value = ssm.get(key, 1)
        if not (key == "dt_rank" and value == "auto") and (type(value) is not int or not 1 <= value <= 4096):
            raise UserError(f"model.ssm_cfg.{key}: must be an integer from 1 to 4096, got {value!r}")


def encoder_length(model: dict[str, Any]) -> int | None:
    """M of a JRT-RNN's config.json (1024 where its mixer does not say), or None for other families."""
    for key in ("mixer", "alt_mixer", "alt_mixer_2"):
        mixer = model.get(key)
        if isinstance(mixer, dict) and str(mixer.get("_target_", "")).endswith("PrefixLinearAttention"):
            length = mixer.get("enc_length", 1024)
            if type(length) is not int or length < 1:
                raise UserError(f"model.{key}.enc_length: must be an integer of at least 1, got {length!r}")
            return length
    return None


def padded_vocabulary(model: dict[str, Any]) -> int | None:
    """Rows of the embedding, padding included."""
    if model.get("vocab_size") is None:
        return None
    multiple = model.get("pad_vocab_size_multiple") or 1
    return -(-int(model["vocab_size"]) // multiple) * multiple


def _require(holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{rule}, got {value}")
