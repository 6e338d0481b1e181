"""Mamba and Mamba-2 in the mamba_ssm layout, on transformers' classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from jrt_eval.errors import UserError
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.transformers import TransformersModel
from jrt_eval.models.weights import assign, common_dtype, count_layers, merge_tied, read_weights

_MAMBA1 = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False}
_MAMBA2 = {"d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "ngroups": 1, "chunk_size": 256, "conv_bias": True,
           "bias": False}  # fmt: skip
_NEUTRAL = {
    "layer", "use_fast_path", "use_mem_eff_path", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor",
    "A_init_range", "device", "dtype", "layer_idx", "process_group", "sequence_parallel", "conv_init",
}  # fmt: skip


def mamba_config(raw: Mapping[str, Any], source: str, arch: str | None = None) -> Any:
    """transformers' config of a mamba_ssm `config.json`; its defaults are mamba_ssm's. arch: mamba1 or mamba2 decides."""
    from transformers import Mamba2Config, MambaConfig

    def refuse(what: str) -> UserError:
        return UserError(f"{source}: {what}")

    ssm = raw.get("ssm_cfg") or {}
    if not isinstance(ssm, Mapping):
        raise refuse(f"ssm_cfg is {ssm!r}, an object is needed")
    layer = {"mamba1": "Mamba1", "mamba2": "Mamba2"}.get(str(arch).lower()) or ssm.get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise refuse(f"ssm_cfg.layer is {layer!r}, known are 'Mamba1' and 'Mamba2'")
    if raw.get("attn_layer_idx"):
        raise refuse("attn_layer_idx names attention layers: hybrids of Mamba and attention are not known")
    if raw.get("d_intermediate"):
        raise refuse(f"d_intermediate is {raw['d_intermediate']!r}: Mamba with MLP layers is not known")
    if not raw.get("rms_norm", True):
        raise refuse("rms_norm is false: only Mamba with RMSNorm is known")
    defaults: dict[str, Any] = _MAMBA1 if layer == "Mamba1" else _MAMBA2
    more = {} if layer == "Mamba1" else {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None,
                                         "dt_limit": None}  # fmt: skip
    for key, value in ssm.items():
        if key in _NEUTRAL or key in defaults:
            continue
        if key not in more or (value != more[key] and not (key == "dt_limit" and list(value) == [0.0, math.inf])):
            raise refuse(f"ssm_cfg.{key} is {value!r}, which is not known for {layer}")
    cfg = {**defaults, **{k: v for k, v in ssm.items() if k in defaults}}
    try:
        d_model, n_layer, vocab = int(raw["d_model"]), int(raw["n_layer"]), int(raw["vocab_size"])
    except (KeyError, TypeError, ValueError):
        raise refuse("d_model, n_layer and vocab_size are needed, as whole numbers") from None
    multiple = int(raw.get("pad_vocab_size_multiple", 8) or 1)
    common = {
        "vocab_size": -(-vocab // multiple) * multiple,
        "hidden_size": d_model,
        "num_hidden_layers": n_layer,
        "state_size": cfg["d_state"],
        "conv_kernel": cfg["d_conv"],
        "expand": cfg["expand"],
        "use_bias": bool(cfg["bias"]),
        "use_conv_bias": bool(cfg["conv_bias"]),
        "layer_norm_epsilon": float(raw.get("norm_epsilon", 1e-5)),
        "residual_in_fp32": bool(raw.get("residual_in_fp32", True)),
        "tie_word_embeddings": bool(raw.get("tie_embeddings", True)),
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if layer == "Mamba1":
        rank = cfg["dt_rank"]
        return MambaConfig(**common, time_step_rank=math.ceil(d_model / 16) if rank == "auto" else int(rank))
    inner = int(cfg["expand"] * d_model)
    if inner % cfg["headdim"]:
        raise refuse(f"expand * d_model = {inner} is no multiple of headdim {cfg['headdim']}")
    return Mamba2Config(
        **common,
        head_dim=cfg["headdim"],
        num_heads=inner // cfg["headdim"],
        n_groups=cfg["ngroups"],
        chunk_size=cfg["chunk_size"],
    )


EMBEDDINGS, HEAD = "backbone.embeddings.weight", "lm_head.weight"


def load_mamba(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    arch: str | None = None,
) -> TransformersModel:
    """Mamba or Mamba-2 in the mamba_ssm layout."""
    from transformers import Mamba2ForCausalLM, MambaForCausalLM

    name = checkpoint.name
    config = mamba_config(raw, f"{name}/config.json", arch)
    tensors = read_weights(checkpoint)
    tensors = {k.replace("backbone.embedding.", "backbone.embeddings."): v for k, v in tensors.items()}
    tied = bool(config.tie_word_embeddings)
    if tied:
        merge_tied(tensors, EMBEDDINGS, HEAD, f"{name}: tie_embeddings is true")
    count_layers(tensors, r"backbone\.layers\.(\d+)\.", config.num_hidden_layers, f"{name}: n_layer")
    with torch.device("meta"):
        inner = (MambaForCausalLM if config.model_type == "mamba" else Mamba2ForCausalLM)(config)
    kind = common_dtype(tensors, name)
    assign(inner, tensors, source=name, device=device, dtype=dtype or kind, optional=lambda key: tied and key == HEAD)
    if tied:
        inner.lm_head.weight = inner.backbone.embeddings.weight
    return TransformersModel(inner.eval(), raw)
