"""Checkpoints as PyTorch modules.

load_model        a checkpoint by folder or hub id
from_config       a JRT, Based or attention model with random weights, from a released-form config
save_pretrained   write one in the released form
"""

from __future__ import annotations

from jrt_eval.models.auto import load_model, save_pretrained
from jrt_eval.models.recurrent.model import JRTModel, ModelState, from_config

__all__ = ["JRTModel", "ModelState", "from_config", "load_model", "save_pretrained"]
