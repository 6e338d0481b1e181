"""Checkpoints as PyTorch modules.

load_model        a checkpoint by folder or hub id
from_config       a JRT, Based or attention model with random weights, from a released-form config
save_pretrained   write one in the released form

Importing this package does not import torch: the tokenizer rule and the context-length rule work without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jrt_eval.models.auto import load_model
    from jrt_eval.models.recurrent.checkpoint import save_pretrained
    from jrt_eval.models.recurrent.mamba import MambaModel
    from jrt_eval.models.recurrent.model import JRTModel, ModelState, from_config

__all__ = ["JRTModel", "MambaModel", "ModelState", "from_config", "load_model", "save_pretrained"]

_MODULES = {
    "JRTModel": "recurrent.model",
    "MambaModel": "recurrent.mamba",
    "ModelState": "recurrent.model",
    "from_config": "recurrent.model",
    "load_model": "auto",
    "save_pretrained": "recurrent.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
