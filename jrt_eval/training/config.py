"""What a training configuration may say, and how a YAML file becomes one.

Every key is a field of a dataclass below; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.settings import load


@dataclass
class Objective:
    """The loss (spec/training.md). `ntp`: next token at every position. `jrt`: NTP + mlm_weight * MLM.

    boundary: count also position M-1, which predicts token M. The paper's NTP starts at position M; but a prompt that
    was padded to exactly M tokens is answered by position M-1, so models that learn from prompts want it.
    tail: batches shorter than M + tail have an encoder of all their positions but so many (0: M always).
    context_weight: weight of tokens that no answer contains, for rows that say what their answers are (1: all alike).
    per_row: every row weighs the same, however many of its tokens count.
    """

    kind: str = "ntp"
    mlm_weight: float = 0.25
    mask_probability: float = 0.15
    mask_token_id: int = 50263
    boundary: bool = False
    tail: int = 0
    context_weight: float = 1.0
    per_row: bool = False


@dataclass
class Synthetic:
    """Generated rows: `name` is documents, set_disjointness or mqar; `options` are that generator's own."""

    name: str
    rows: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """Where rows come from: exactly one of `files`, `dataset` and `synthetic`.

    files: paths or globs of .txt, .jsonl or .parquet; `field` is the column with text. Documents are joined by the
    end-of-text token and cut into rows of the longest of `lengths`. Records with `prompt` and `completion` fields
    (strings) make a row each instead, as generated rows do.
    dataset: an id for `datasets.load_dataset`, with `subset` and `split`.
    lengths: sequence lengths; a row goes to the shortest that holds it.
    """

    lengths: list[int]
    files: list[str] | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    synthetic: Synthetic | None = None


@dataclass
class Optimizer:
    """AdamW with a linear warm-up and a cosine to `min_lr`; no decay on biases, norms and other vectors."""

    lr: float = 8e-4
    min_lr: float = 8e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup: float = 0.01
    clip: float = 1.0


@dataclass
class Config:
    """A training run. `model` is a config.json in the released form (spec/models.md), as a mapping.

    curriculum: the share of the steps over which the data's lengths come in, the shortest first (0: all from the start).
    init_from: a checkpoint folder whose weights the run starts with; a JRT-RNN may start from a Based model.
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
    precision: str = "bf16"
    backend: str = "torch"
    compile: bool = False
    seed: int = 0
    init_from: str | None = None
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    tensorboard: bool = True
    cache: str = "runs/tokens"
    export_dtype: str | None = None

    def check(self) -> None:
        """Raise `UserError` for combinations that cannot be trained."""
        for name, data in (("data", self.data), ("validation", self.validation)):
            if data is None:
                continue
            given = [key for key in ("files", "dataset", "synthetic") if getattr(data, key)]
            if len(given) != 1:
                raise UserError(
                    f"{name}: give exactly one of files, dataset and synthetic "
                    f"(found {', '.join(given) if given else 'none'})"
                )
            text = data.synthetic is None or data.synthetic.name == "documents"
            if text and self.tokenizer is None:
                raise UserError(f"tokenizer: {name} is text and needs one: a folder, a hub id, or mini")
            if not data.lengths or min(data.lengths) < 2:
                raise UserError(f"{name}.lengths: need at least one length of 2 or more, got {data.lengths}")
        if self.objective.kind not in ("ntp", "jrt"):
            known = nearest(self.objective.kind, ["ntp", "jrt"])
            raise UserError(f"objective.kind: unknown objective {self.objective.kind!r}{known}; known: ntp, jrt")
        if self.precision not in ("bf16", "fp32"):
            raise UserError(f"precision: {self.precision!r} is neither 'bf16' nor 'fp32'")
        if self.export_dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(f"export_dtype: {self.export_dtype!r} is none of float32, bfloat16, float16")
        positive = ("steps", "batch_size", "save_every", "keep", "log_every", "validate_every", "validation_batches")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise UserError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if not 0 <= self.curriculum <= 1:
            raise UserError(f"curriculum: a share of the steps, from 0 to 1, got {self.curriculum}")
        window = self.model.get("max_position_embeddings") or self.model.get("n_positions") or 0
        longest = max(self.data.lengths)
        if window and longest > window:
            raise UserError(
                f"data.lengths: {longest} is longer than the model's window of {window} positions; shorten it, or "
                "set max_position_embeddings to 0 (these models have no position table)"
            )
        layers = self.model.get("n_layer")
        for key in ("alt_mixer_layers", "alt_mixer_2_layers"):
            absent = [n for n in self.model.get(key) or () if isinstance(layers, int) and n not in range(layers)]
            if absent:
                raise UserError(f"model.{key}: {absent[0]} is no layer of {layers}, counted from 0")
        if self.objective.kind == "jrt":
            encoder = encoder_length(self.model)
            if encoder is None:
                raise UserError("objective.kind: jrt needs a model with a PrefixLinearAttention mixer")
            if longest <= encoder:
                raise UserError(
                    f"data.lengths: {longest} leaves nothing to predict after the encoder's {encoder} tokens "
                    "(enc_length)"
                )
        rows = padded_vocabulary(self.model)
        if self.objective.kind == "jrt" and rows is not None and self.objective.mask_token_id >= rows:
            raise UserError(
                f"objective.mask_token_id: {self.objective.mask_token_id} is outside of the model's {rows} rows; "
                "take a padding row of the vocabulary"
            )


def encoder_length(model: dict[str, Any]) -> int | None:
    """M of a JRT-RNN's config.json (1024 where its mixer does not say), or None for other families."""
    for key in ("mixer", "alt_mixer", "alt_mixer_2"):
        mixer = model.get(key)
        if isinstance(mixer, dict) and str(mixer.get("_target_", "")).endswith("PrefixLinearAttention"):
            return int(mixer.get("enc_length", 1024))
    return None


def padded_vocabulary(model: dict[str, Any]) -> int | None:
    """Rows of the embedding, padding included."""
    if "vocab_size" not in model:
        return None
    multiple = int(model.get("pad_vocab_size_multiple", 1) or 1)
    return -(-int(model["vocab_size"]) // multiple) * multiple


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and check a YAML file; `overrides` are `dotted.key=value` with YAML values."""
    if not path.is_file():
        raise UserError(f"no training configuration at {path}; shipped ones are in configs/paper and configs/mini")
    config = load(Config, path, overrides, "training configuration")
    config.check()
    return config
