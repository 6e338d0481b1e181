"""`load_model`: a checkpoint of any family by folder or hub id."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from jrt_eval.errors import UserError
from jrt_eval.kernels import linear
from jrt_eval.kernels.memory import keep_freed_memory
from jrt_eval.models.checkpoints import Checkpoint, family_of
from jrt_eval.models.interface import LanguageModel
from jrt_eval.models.recurrent.checkpoint import load_jrt
from jrt_eval.models.recurrent.fla import TYPES as OUR_FLA_TYPES
from jrt_eval.models.recurrent.fla import load_fla
from jrt_eval.models.recurrent.mamba_checkpoint import load_mamba
from jrt_eval.models.transformers import load_transformers
from jrt_eval.models.weights import as_dtype

log = logging.getLogger(__name__)


def load_model(
    path_or_repo: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
    backend: str = "auto",
    arch: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cuda_graphs: bool = True,
    cpu_linear: str = "torch",
    subfolder: str | None = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    peft: str | None = None,
) -> LanguageModel:
    """Load a checkpoint by folder or hub id, in evaluation mode.

    device: None means cuda if available, else cpu. dtype: "auto" keeps the file's. backend: which kernels to use
    ("auto", "torch", "cpu", "cuda", "fla"). arch: jrt, based, attn, mamba, mamba2, transformers or fla, to override
    what config.json says; with fla, flash-linear-attention's own classes compute GLA, RetNet and the DeltaNets too.
    cuda_graphs: decode through CUDA graphs on a GPU.
    cpu_linear: the product of linear layers on a CPU. "torch" is PyTorch's; "packed" is oneDNN's on packed weights, which
    `parameters()` lists without their values; "auto" takes the fastest for each shape (`jrt_eval.kernels.linear`).
    subfolder: where the files are inside the folder or repository. attn_implementation, device_map, peft (a LoRA adapter
    by folder or hub id): for transformers' classes only.

    The module's call takes input_ids (batch, length) and returns an object with `.logits` (batch, length,
    vocabulary), padding rows of the vocabulary included; `.generate(input_ids, max_new_tokens=...)` returns prompt
    and continuation; `.state_size(length)` the bytes of one sequence's state. Raises `UserError`, one line, for
    anything wrong with the checkpoint.
    """
    where = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = as_dtype(dtype)
    checkpoint = Checkpoint(path_or_repo, revision, subfolder)
    raw = checkpoint.config()
    family = family_of(raw, arch)
    fla_is_ours = family == "fla" and arch is None and raw["model_type"] in OUR_FLA_TYPES and not _fla_is_faster(where)
    for name, given in [("attn_implementation", attn_implementation), ("device_map", device_map), ("peft", peft)]:
        if given is not None and (family in ("jrt", "mamba") or fla_is_ours):
            raise UserError(f"{name} applies to transformers' classes; {checkpoint.name} is loaded by our own")
    model: LanguageModel
    if family == "jrt":
        model = load_jrt(checkpoint, raw, device=where, dtype=kind, backend=backend, cuda_graphs=cuda_graphs)
        if arch is not None and model.family not in (arch.lower().replace("attention", "attn"), "hybrid"):
            log.warning("%s: arch=%s, but its config describes %s: loaded as %s", checkpoint.name, arch, model.family,
                        model.family)  # fmt: skip
    elif fla_is_ours:
        model = load_fla(checkpoint, raw, device=where, dtype=kind, backend=backend, cuda_graphs=cuda_graphs)
    elif family == "mamba":
        model = load_mamba(
            checkpoint, raw, device=where, dtype=kind, backend=backend, arch=arch, cuda_graphs=cuda_graphs
        )
    else:
        model = load_transformers(
            checkpoint,
            raw,
            device=where,
            dtype=kind,
            backend=backend,
            cuda_graphs=cuda_graphs,
            fla=family == "fla",
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
            device_map=device_map,
            peft=peft,
        )
    if where.type == "cpu":
        keep_freed_memory()
    linear.use_fastest(cast(torch.nn.Module, model), cpu_linear if device_map is None else "torch")
    model.source, model.revision = checkpoint.name, revision
    return model


def _fla_is_faster(device: torch.device) -> bool:
    """On a GPU, flash-linear-attention's own classes are preferred where they are installed."""
    return device.type == "cuda" and find_spec("fla") is not None
