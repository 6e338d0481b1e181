"""Checkpoints in the released form, together with the state that a resumed run needs.

    checkpoints/step-0001000/config.json, model.safetensors, tokenizer files      what `--model jrt` loads
                             training/optimizer.pt, training/state.json           what resuming needs

A checkpoint is written to a temporary folder, flushed to disk and renamed. So a killed run or a full disk leaves the
earlier checkpoints as they were. Only finite weights are written, and the older checkpoint is removed afterwards.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.files import new_folder, read_text, reason, remove_folder
from jrt_eval.training import starting_weights
from jrt_eval.training.objective import load_released_state, released_state

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
)
_NAME = re.compile(r"step-(\d{7,})")


class DamagedCheckpoint(ValueError):
    """A checkpoint cannot be read, or its weights are not finite."""


@dataclass(frozen=True)
class SavedState:
    """Everything in a checkpoint that training needs, read and checked but not yet loaded into a model."""

    folder: Path
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def existing(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first; folders with other names are not ours."""
    return sorted((path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def write_model(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the released form: config.json, model.safetensors (in `dtype` if given), the tokenizer's files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = released_state(model)
    if dtype is not None:
        state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    save_file({key: t.cpu() for key, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)


def export_model(
    folder: Path, model: nn.Module, config: Mapping[str, Any], tokenizer: Path | None, dtype: torch.dtype
) -> None:
    """Write the released form to `folder`, in place of what was there. Raises `UserError` if that fails."""
    from safetensors import SafetensorError

    staging = folder.with_name(f".{folder.name}-new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        with new_folder(staging) as temporary:
            write_model(temporary, model, config, tokenizer, dtype)
        remove_folder(folder)
        staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write the model to {folder}: {reason(error)}") from error


def save(
    root: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` under `root`, then remove all but the newest `keep`.

    Raises `UserError` if it could not be written; the earlier checkpoints are then unchanged.
    """
    from safetensors import SafetensorError

    final = root / f"step-{step:07d}"
    previous = existing(root)
    try:
        with new_folder(final) as temporary:
            write_model(temporary, model, config, tokenizer)
            (temporary / "training").mkdir()
            torch.save(optimizer.state_dict(), temporary / "training" / "optimizer.pt")
            (temporary / "training" / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error) and "enforce fail" not in str(error):
            raise  # not a failure of torch.save to write its file
        unchanged = f"{previous[-1]} is unchanged" if previous else "there is no earlier one"
        raise UserError(
            f"could not write the checkpoint of step {step} to {root}: {reason(error)}; {unchanged}. "
            "Free some disk space and run the same command: it resumes from there"
        ) from error
    for old in existing(root)[:-keep]:
        remove_folder(old)
    return final


def non_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of a tensor of the model or the optimiser state that is not finite, or None."""
    return _first_non_finite(_named_tensors(model.state_dict(), optimizer.state_dict()))


def load_weights(folder: Path, model: nn.Module, *, start: bool = False) -> None:
    """Load the weights of a checkpoint folder into `model`. Raises `UserError` if they cannot be read or do not fit.

    start: the weights need not fit exactly (`jrt_eval.training.starting_weights`).
    """
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors")
    try:
        state = _read_weights(folder)
    except DamagedCheckpoint as error:
        raise UserError(f"{folder} is damaged: {error}") from None
    if start:
        starting_weights.fit(model, state)
    try:
        load_released_state(model, state)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the configured model: {' '.join(str(error).split())[:300]}") from None


def read_checkpoint(folder: Path) -> SavedState:
    """Read and check a checkpoint. Raises `DamagedCheckpoint`."""
    try:
        state = json.loads(read_text(folder / "training" / "state.json"))
        path = folder / "training" / "optimizer.pt"
        optimizer = torch.load(path, weights_only=True, map_location="cpu")
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from None
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise DamagedCheckpoint(f"{folder / 'training'}: {_line(error)}") from None
    if not isinstance(state, dict) or state.get("step") != step_of(folder) or not isinstance(state.get("config"), dict):
        raise DamagedCheckpoint(f"{folder / 'training' / 'state.json'} does not describe step {step_of(folder)}")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        raise DamagedCheckpoint(f"{path} is not the state of an optimiser")
    weights = _read_weights(folder)
    if (name := _first_non_finite(_named_tensors(weights, optimizer))) is not None:
        raise DamagedCheckpoint(f"{name} is not finite")
    return SavedState(folder, step_of(folder), weights, optimizer, state)


def restore(saved: SavedState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint into model and optimiser. Raises `DamagedCheckpoint` if it does not fit them."""
    try:
        load_released_state(model, saved.weights)
        optimizer.load_state_dict(saved.optimizer)
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        raise DamagedCheckpoint(f"it does not fit the configured model: {_line(error)}") from None
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if not isinstance(moments.get(name), Tensor) or moments[name].shape != parameter.shape:
                raise DamagedCheckpoint(f"the optimiser state {name} does not fit its parameter")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder / 'model.safetensors'}: {_line(error)}") from None


def _named_tensors(weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from weights.items()
    for index, moments in optimizer["state"].items():
        for name, value in moments.items() if isinstance(moments, dict) else ():
            if isinstance(value, Tensor):
                yield f"the optimiser's {name} of parameter {index}", value


def _first_non_finite(named: Iterator[tuple[str, Tensor]]) -> str | None:
    """One transfer from the device for all tensors, rather than one each."""
    pairs = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not pairs:
        return None
    first = pairs[0][1].device
    finite = torch.stack([tensor.isfinite().all().to(first, non_blocking=True) for _, tensor in pairs]).tolist()
    return next((name for (name, _), good in zip(pairs, finite, strict=True) if not good), None)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
