"""The training objectives as one module, so that DistributedDataParallel and torch.compile see a single forward.

NTP is next-token cross-entropy; the JRT objective (JRT paper, section 4) is NTP over positions >= M plus 0.25 times the
cross-entropy at the masked positions of the encoder's region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100


class Sums(NamedTuple):
    """Unnormalised: weighted NTP loss, summed MLM loss; and, where asked for, right answer tokens and rows."""

    ntp: Tensor
    mlm: Tensor
    right_tokens: Tensor | None = None
    right_rows: Tensor | None = None


class Trainable(nn.Module):
    """A model with its loss. `encoder` is M for the JRT objective; NTP counts from `first_position` on."""

    def __init__(self, model: nn.Module, encoder: int | None = None, first_position: int = 0) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder
        self.first_position = first_position

    def logits(self, inputs: Tensor, left_pads: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, vocabulary rows), float32."""
        if self.encoder is not None:
            out: Tensor = self.model(inputs, pads=left_pads).logits
        elif hasattr(self.model, "backbone"):
            out = self.model.logits(inputs)  # type: ignore[operator]
        else:
            out = self.model(inputs).logits
        return out.float()

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        masked: Tensor,
        left_pads: Tensor,
        answers: Tensor | None = None,
    ) -> Sums:
        """Sums over a batch; all arguments (batch, length) but left_pads (batch,). `answers` asks for accuracy."""
        logits = self.logits(inputs, left_pads)
        first = self.first_position
        ntp = _weighted(logits[:, first:], labels[:, first:], weights[:, first:])
        mlm = logits.new_zeros(())
        if self.encoder is not None:
            region = masked[:, : self.encoder]
            mlm = _weighted(logits[:, : self.encoder], region, (region != IGNORE).to(logits.dtype))
        if answers is None:
            return Sums(ntp, mlm)
        right = (logits.argmax(-1) == labels) | ~answers
        return Sums(ntp, mlm, (right & answers).sum(), (right.all(1) & answers.any(1)).sum())


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE)
    return (losses * weights.flatten()).sum()


def is_mamba(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the mamba_ssm layout."""
    return "d_model" in config and "n_embd" not in config


def build_model(config: Mapping[str, Any], backend: str, seed: int, device: str = "cpu") -> nn.Module:
    """A model with fresh weights that depend on `seed` alone; on "meta" nothing is drawn."""
    from jrt_eval.training import parallel  # noqa: F401 - registers the backend `parallel`

    if is_mamba(config):
        from jrt_eval.training.mamba import MambaLM

        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MambaLM(config)
            if device != "meta":
                model.reset()
        return model
    from jrt_eval.models.model import from_config

    return from_config(config, device=device, backend=backend, seed=seed)


def released_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a released file: tied weights once, nothing that is derived."""
    state = dict(model.state_dict())
    tied = {key for key in ("lm_head.weight",) if key in state}
    for key in tied:
        if any(state[key].data_ptr() == other.data_ptr() for name, other in state.items() if name != key):
            del state[key]
    return {key: tensor.detach().contiguous() for key, tensor in state.items()}


def load_released_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `released_state`; raises for tensors that are missing or unknown."""
    missing, unknown = model.load_state_dict(dict(state), strict=False)
    missing = [key for key in missing if key != "lm_head.weight"]
    if missing or unknown:
        raise ValueError(f"checkpoint and model differ: missing {missing}, unknown {unknown}")
