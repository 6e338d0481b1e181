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
    """A model with its loss. A model with a prefix encoder is told its left padding and what it encodes."""

    def __init__(self, model: nn.Module, *, encoder: bool = False) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder

    def hidden(self, inputs: Tensor, left_pads: Tensor, encoder_lengths: Tensor) -> Tensor:
        """What the head reads, (batch, length, d)."""
        prefix = {"pads": left_pads, "encoder_lengths": encoder_lengths} if self.encoder else {}
        x: Tensor = self.model.hidden(inputs, **prefix)[0]  # type: ignore[operator]
        return x

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        masked: Tensor,
        left_pads: Tensor,
        encoder_lengths: Tensor,
        answers: Tensor | None = None,
    ) -> Sums:
        """Sums over a batch; arguments (batch, length), left_pads and encoder_lengths (batch,). `answers`: accuracy too.

        The head, the costliest layer of a small model, is applied only where something is owed.
        """
        x = self.hidden(inputs, left_pads, encoder_lengths)
        owed, hidden = weights > 0, masked != IGNORE
        logits = self.model.logits(x[owed])  # type: ignore[operator]
        ntp = _weighted(logits, labels[owed], weights[owed])
        mlm = ntp.new_zeros(())
        if self.encoder:
            targets = masked[hidden]
            mlm = _weighted(self.model.logits(x[hidden]), targets, torch.ones_like(targets))  # type: ignore[operator]
        if answers is None:
            return Sums(ntp, mlm)
        right = torch.zeros_like(owed).masked_scatter(owed, logits.argmax(-1) == labels[owed]) & answers
        return Sums(ntp, mlm, right.sum(), ((right == answers).all(1) & answers.any(1)).sum())


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """logits (n, vocabulary), labels and weights (n,)."""
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


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
    from jrt_eval.models.recurrent.model import from_config

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
