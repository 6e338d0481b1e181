"""The loss as one module, so that DistributedDataParallel and torch.compile see a single forward pass.

NTP is next-token cross-entropy. The JRT objective (arXiv 2407.05483, section 4) is NTP over the positions from M on plus
0.25 times the cross-entropy at the masked positions before M.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.data.rows import IGNORED_LABEL


class LossSums(NamedTuple):
    """Sums over a batch: weighted NTP loss and MLM loss; on request, correct answer tokens and rows with a correct answer."""

    ntp: Tensor
    mlm: Tensor
    right_tokens: Tensor | None = None
    right_rows: Tensor | None = None


class Trainable(nn.Module):
    """A model with its loss. encoder: the model takes the left padding and encoder length of each row."""

    def __init__(self, model: nn.Module, *, encoder: bool = False) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder

    def hidden(self, inputs: Tensor, left_pads: Tensor, encoder_lengths: Tensor) -> Tensor:
        """The input of the model's head, (batch, length, d)."""
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
    ) -> LossSums:
        """Sums over a batch. Arguments are (batch, length), left_pads and encoder_lengths (batch,).

        answers: marks answer tokens, whose accuracy is returned as well. The head, which is the largest layer of a small
        model, is applied only where there is loss.
        """
        x = self.hidden(inputs, left_pads, encoder_lengths)
        scored, hidden = weights > 0, masked != IGNORED_LABEL
        logits = self.model.logits(x[scored])  # type: ignore[operator]
        ntp = _weighted(logits, labels[scored], weights[scored])
        mlm = ntp.new_zeros(())
        if self.encoder:
            targets = masked[hidden]
            mlm = _weighted(self.model.logits(x[hidden]), targets, torch.ones_like(targets))  # type: ignore[operator]
        if answers is None:
            return LossSums(ntp, mlm)
        right = torch.zeros_like(scored).masked_scatter(scored, logits.argmax(-1) == labels[scored]) & answers
        return LossSums(ntp, mlm, right.sum(), ((right == answers).all(1) & answers.any(1)).sum())


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """logits (n, vocabulary), labels and weights (n,)."""
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


def is_mamba(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the mamba_ssm layout."""
    return "d_model" in config and "n_embd" not in config


def build_model(config: Mapping[str, Any], backend: str, seed: int, device: str = "cpu") -> nn.Module:
    """A model with random weights that depend only on `seed`; on the device "meta" it has no values."""
    if is_mamba(config):
        from jrt_eval.training.mamba import MambaLM

        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MambaLM(config, backend=backend)
            if device != "meta":
                model.reset()
        return model
    from jrt_eval.models.recurrent.model import from_config

    return from_config(config, device=device, backend=backend, seed=seed)


def released_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a released file: tied weights appear once, derived tensors not at all."""
    state = dict(model.state_dict())
    tied = {key for key in ("lm_head.weight",) if key in state}
    for key in tied:
        if any(state[key].data_ptr() == other.data_ptr() for name, other in state.items() if name != key):
            del state[key]
    return {key: tensor.detach().contiguous() for key, tensor in state.items()}


def load_released_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `released_state`. Raises `ValueError` for tensors that are missing or unknown."""
    missing, unknown = model.load_state_dict(dict(state), strict=False)
    missing = [key for key in missing if key != "lm_head.weight"]
    if missing or unknown:
        raise ValueError(f"checkpoint and model differ: missing {missing}, unknown {unknown}")
