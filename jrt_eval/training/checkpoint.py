"""Checkpoints in the released form, with what a resumed run needs beside it; whole or not there at all.

    checkpoints/step-0001000/config.json, model.safetensors, tokenizer files      what `--model jrt` loads
                             training/optimizer.pt, training/state.json           what resuming needs

A checkpoint is written to a hidden folder beside the others, flushed to disk, and renamed. So a run that is killed, or
a disk that is full, leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.training.objective import load_released_state, released_state

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def existing(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((p for p in root.glob("step-*") if p.is_dir()), key=step_of)


def write_model(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    dtype: torch.dtype | None = None,
) -> None:
    """The released form: config.json, model.safetensors (converted to `dtype` if given), the tokenizer's files."""
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
    """Write the checkpoint of `step` under `root`, then drop all but the newest `keep`.

    Raises UserError if it could not be written; what stood there before still does.
    """
    from safetensors import SafetensorError

    final, partial = root / f"step-{step:07d}", root / f".writing-{step:07d}"
    previous = existing(root)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write_model(partial, model, config, tokenizer)
        (partial / "training").mkdir()
        torch.save(optimizer.state_dict(), partial / "training" / "optimizer.pt")
        (partial / "training" / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
        for path in (*partial.rglob("*"), partial):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(root)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, RuntimeError) and "write" not in str(error) and "enforce fail" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        stays = f"{previous[-1]} stays as it was" if previous else "there is no earlier one"
        raise UserError(
            f"could not write the checkpoint of step {step} to {root}: {reason}; {stays}. "
            "Make room, then run the same command: it resumes from there"
        ) from error
    for old in existing(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_weights(folder: Path, model: nn.Module, *, start: bool = False) -> None:
    """Weights of a checkpoint folder into `model`.

    start: the model may be deeper (`fit_layers`), its linear attentions may differ from the file's
    (`fit_linear_attention`), and a Mamba model may have fewer states (`fit_states`).
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder} holds no model.safetensors")
    state: dict[str, Tensor] = load_file(path)
    if start:
        fit_layers(model, state)
        fit_linear_attention(model, state)
        fit_states(model, state)
    try:
        load_released_state(model, state)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the configured model: {' '.join(str(error).split())[:300]}") from None


def fit_layers(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Make a file fit a deeper model: a layer takes the next one of the file if their mixers are of one kind, else it is
    new and begins as the identity, with zeros in the projections that write to the residual stream.
    """
    prefix = "transformer.layers."

    def layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for key in filter(lambda key: key.startswith(prefix), tensors):
            index, _, rest = key.removeprefix(prefix).partition(".")
            found.setdefault(int(index), {})[rest] = tensors[key]
        return [found[index] for index in sorted(found)]

    def kind(layer: Mapping[str, Tensor]) -> set[str]:
        return {rest for rest in layer if rest.startswith("mixer.") and "_enc." not in rest}

    ours, theirs = layers(model.state_dict()), layers(state)
    if not 0 < len(theirs) < len(ours):
        return
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]
    for index, layer in enumerate(ours):
        if theirs and kind(theirs[0]) == kind(layer):
            chosen = theirs.pop(0)
        else:
            silent = ("mixer.out_proj.", "mlp.fc2.")
            chosen = {rest: torch.zeros_like(t) if rest.startswith(silent) else t for rest, t in layer.items()}
        state.update({f"{prefix}{index}.{rest}": tensor for rest, tensor in chosen.items()})
    for index, layer in enumerate(theirs, len(ours)):  # no room for these: loading will say so
        state.update({f"{prefix}{index}.{rest}": tensor for rest, tensor in layer.items()})


def fit_linear_attention(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Make a file's linear attentions fit the model's: another family, or a smaller or larger state.

    JRT-RNN from Based: the encoder's projections begin as copies of the decoder's. Behind the encoder both sums count
    the prefix twice, and their ratio is Based's.
    feature_dim: a head's scores are q.k = x (Wq^T Wk) y. A smaller head begins with the best approximation of that
    product by its rank (the largest singular values, over k and the encoder's k together); a larger one computes the
    same scores, its new keys being zeros and its new queries what they were drawn as.
    """
    fresh = model.state_dict()
    for name, module in model.named_modules():
        if not hasattr(module, "feature_dim") or f"{name}.proj_q.weight" not in state:
            continue
        if getattr(module, "enc_length", 0):
            for part in ("k", "v"):
                state.setdefault(f"{name}.proj_{part}_enc.weight", state[f"{name}.proj_{part}.weight"].clone())
        keys = [key for key in (f"{name}.proj_k.weight", f"{name}.proj_k_enc.weight") if key in fresh and key in state]
        query, heads, wanted = f"{name}.proj_q.weight", int(module.heads), int(module.feature_dim)  # type: ignore[arg-type]
        held = state[query].shape[0] // heads
        if held == wanted or state[query].shape[0] % heads or state[query].shape[1] != fresh[query].shape[1]:
            continue
        dtype = state[query].dtype
        q = state[query].double().unflatten(0, (heads, held))  # (heads, features, d)
        k = torch.cat([state[key].double().unflatten(0, (heads, held)) for key in keys], 2)
        if wanted < held:
            u, s, v = torch.linalg.svd(q.transpose(1, 2) @ k, full_matrices=False)
            root = s[:, :wanted].sqrt()[..., None] * (wanted / held) ** 0.25  # scores are divided by sqrt(feature_dim)
            q, k = u[:, :, :wanted].transpose(1, 2) * root, v[:, :wanted] * root
        else:
            more = fresh[query].double().cpu().unflatten(0, (heads, wanted))[:, held:]
            grown = (wanted / held) ** 0.25
            q = torch.cat([q * grown, more], 1)
            k = torch.cat([k * grown, k.new_zeros(heads, wanted - held, k.shape[2])], 1)
        state[query] = q.flatten(0, 1).to(dtype)
        for key, fitted in zip(keys, k.chunk(len(keys), 2), strict=True):
            state[key] = fitted.flatten(0, 1).to(dtype).contiguous()


def fit_states(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Make a Mamba file's mixers fit a model with fewer states: the first are kept, which forget slowest."""
    for name, module in model.named_modules():
        key = f"{name}.A_log"
        if not hasattr(module, "A_log") or key not in state or (held := state[key].shape[1]) <= module.states:  # type: ignore[operator]
            continue
        wanted, rank = int(module.states), int(module.rank)  # type: ignore[arg-type]
        order = state[key].float().mean(0).argsort()[:wanted]
        dt, b, c = state[f"{name}.x_proj.weight"].split([rank, held, held])
        state[key] = state[key][:, order].contiguous()
        state[f"{name}.x_proj.weight"] = torch.cat([dt, b[order], c[order]])


def load_training(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights, optimiser and the run's state from a checkpoint; returns the state."""
    load_weights(folder, model)
    optimizer.load_state_dict(torch.load(folder / "training" / "optimizer.pt", weights_only=True, map_location="cpu"))
    state: dict[str, Any] = json.loads((folder / "training" / "state.json").read_text())
    return state
