"""Reading and writing checkpoints of the release: JRT-RNN, Based and attention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jrt_eval.errors import UserError
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.recurrent.config import parse_config
from jrt_eval.models.recurrent.fla import TYPES as FLA_TYPES
from jrt_eval.models.recurrent.fla import fla_state_dict
from jrt_eval.models.recurrent.loading import with_weights
from jrt_eval.models.recurrent.model import Decay, JRTModel
from jrt_eval.models.weights import count_layers, merge_tied, read_weights

EMBEDDINGS, HEAD, DECAY = "transformer.embeddings.word_embeddings.weight", "lm_head.weight", "transformer.decay.decay"


def load_jrt(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    backend: str,
    cuda_graphs: bool = True,
) -> JRTModel:
    """A checkpoint in the release's form."""
    name = checkpoint.name
    config = parse_config(raw, f"{name}/config.json")
    tensors = read_weights(checkpoint)
    if config.tied:
        merge_tied(tensors, EMBEDDINGS, HEAD, f"{name}: tie_word_embeddings is true")
    count_layers(tensors, r"transformer\.layers\.(\d+)\.", config.n_layer, f"{name}: n_layer")
    log_decay = tensors.pop(DECAY, None)  # the file may have the buffer though no layer decays
    config = config.complete(lambda key: tuple(tensors[key].shape) if key in tensors else None)
    with torch.device("meta"):
        model = JRTModel(config, raw, backend=backend)
    optional = {DECAY, HEAD} if config.tied else {DECAY}
    model = with_weights(
        model, tensors, source=name, device=device, dtype=dtype, optional=optional, cuda_graphs=cuda_graphs
    )
    if config.decay_heads:
        holder: Any = model.transformer.decay
        # log a_h is small: it stays float32 whatever dtype the weights have
        holder.decay = _log_decay(log_decay, config.decay_heads, config.decay_const, name).to(device)
    return model


def _log_decay(given: Tensor | None, heads: int, const: float | None, name: str) -> Tensor:
    """log a_h (heads,), from the file or from `decay_const`."""
    if given is None:
        if const is None:
            raise UserError(f"{name}: fixed_decay is true, but there is neither decay_const nor {DECAY}")
        with torch.device("cpu"):
            given = Decay(heads, const).decay
    if given.numel() != heads:
        raise UserError(f"{name}: {DECAY} has shape {tuple(given.shape)}, expected {(heads,)}")
    given = given.reshape(-1).float()
    if not bool(torch.isfinite(given).all()):
        raise UserError(f"{name}: {DECAY} holds NaN or infinite values; the file is damaged")
    return given


def save_pretrained(model: JRTModel, folder: str | Path, *, safetensors: bool = False) -> None:
    """Write config.json, and pytorch_model.bin or model.safetensors (tied weights once), in the release's form.

    A model that was read from fla's form is written in fla's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.raw_config, indent=1) + "\n", encoding="utf-8")
    if model.raw_config.get("model_type") in FLA_TYPES:
        state = fla_state_dict(model)
    else:
        state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    if safetensors:
        from safetensors.torch import save_file

        if model.config.tied:
            state.pop(HEAD, None)
        save_file(state, str(folder / "model.safetensors"))
    else:
        torch.save(state, folder / "pytorch_model.bin")
