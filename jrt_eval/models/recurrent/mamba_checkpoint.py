"""Reading checkpoints of Mamba, Mamba-2 and FalconMamba, in the layouts of mamba_ssm and of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.recurrent.loading import with_weights
from jrt_eval.models.recurrent.mamba import MambaModel, read_mamba_ssm, read_transformers
from jrt_eval.models.weights import count_layers, merge_tied, read_weights

EMBEDDINGS, HEAD = "backbone.embedding.weight", "lm_head.weight"


def load_mamba(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    backend: str = "auto",
    arch: str | None = None,
    cuda_graphs: bool = True,
) -> MambaModel:
    """A model of our own class with the weights of a checkpoint. arch: mamba1 or mamba2 replaces the config's."""
    name = checkpoint.name
    source = f"{name}/config.json"
    config = read_transformers(raw, source) if "hidden_size" in raw else read_mamba_ssm(raw, source, arch)
    tensors = read_weights(checkpoint)
    tensors = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in tensors.items()}
    if config.tied:
        merge_tied(tensors, EMBEDDINGS, HEAD, f"{name}: its embeddings are tied")
    count_layers(tensors, r"backbone\.layers\.(\d+)\.", config.n_layer, f"{name}: the number of layers")
    with torch.device("meta"):
        model = MambaModel(config, raw, backend=backend)
    optional = {HEAD} if config.tied else ()
    return with_weights(
        model, tensors, source=name, device=device, dtype=dtype, optional=optional, cuda_graphs=cuda_graphs
    )
