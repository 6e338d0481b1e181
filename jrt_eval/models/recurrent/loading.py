"""The last step of loading a checkpoint into our own model class."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor

from jrt_eval.models.recurrent.model import RecurrentModel
from jrt_eval.models.weights import assign, common_dtype

Model = TypeVar("Model", bound=RecurrentModel)


def with_weights(
    model: Model,
    tensors: dict[str, Tensor],
    *,
    source: str,
    device: torch.device,
    dtype: torch.dtype | None,
    optional: Collection[str],
    cuda_graphs: bool,
) -> Model:
    """`model`, built on the device "meta", with a checkpoint's tensors, in evaluation mode.

    dtype: the tensors' own by default. optional: names that the checkpoint need not have.
    """
    kind = common_dtype(tensors, source)
    assign(model, tensors, source=source, device=device, dtype=dtype or kind, optional=lambda key: key in optional)
    model.tie_weights()
    model.cuda_graphs = cuda_graphs
    return model.eval()
