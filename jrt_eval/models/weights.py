"""Tensors of weight files: read without executing anything, checked, and put into a model.

Weights are read with `torch.load(weights_only=True, mmap=True)` or safetensors, into a model on the meta device, so
that loading needs little more memory than the file's size.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError, nearest
from jrt_eval.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def as_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name; None for None and "auto", which mean the dtype of the file."""
    if name is None or isinstance(name, torch.dtype):
        return name
    key = str(name).removeprefix("torch.").lower()
    if key == "auto":
        return None
    if key not in DTYPES:
        raise UserError(
            f"dtype {name!r} is not known, known are: auto, {', '.join(DTYPES)}" + nearest(key, list(DTYPES))
        )
    return DTYPES[key]


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint, memory-mapped, with the names that today's models have (see `clean_keys`)."""
    tensors: dict[str, Tensor] = {}
    for path, names in checkpoint.weight_files().items():
        held = read_tensors(path)
        if names is not None:
            if lost := sorted(names - held.keys()):
                raise UserError(f"{path} lacks {lost[0]}, which the index of weight files assigns to it")
            if stale := sorted(held.keys() - names):
                log.warning("%s: %s and %d more are not assigned to this file: ignored", path, stale[0], len(stale) - 1)
            held = {name: held[name] for name in names}
        tensors |= held
    return clean_keys(tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one weight file, memory-mapped; nothing in the file is executed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(20) == b"version https://git-":
            raise UserError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` there")
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (safetensors.SafetensorError, ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{path} ({size:,} bytes) is truncated or not a safetensors file: {_line(error)}") from None
    _check_archive(path, size)
    try:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            held = torch.load(path, map_location="cpu", weights_only=True)  # torch's file format before 1.6
    except pickle.UnpicklingError as error:
        if (name := re.search(r"GLOBAL ([\w.]+)", str(error))) or "nsupported" in str(error):
            what = f" ({name.group(1)})" if name else ""
            raise UserError(
                f"{path} holds more than tensors{what}, and loading that could execute code: refused"
            ) from None
        raise UserError(f"{path} ({size:,} bytes) is truncated, or not a file of tensors: {_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - the instructions of a damaged pickle raise any kind
        raise UserError(f"{path} ({size:,} bytes) is truncated or not a torch file: {_line(error)}") from None
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]  # as training checkpoints hold it
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise UserError(f"{path} holds a {type(held).__name__}, a dict of tensors is needed")
    _check_extent(path, size, held)
    return held


def _check_archive(path: Path, size: int) -> None:
    """Refuse a torch file whose parts are compressed: a few bytes could expand to any size. torch writes none."""
    if not zipfile.is_zipfile(path):
        return  # torch's format before 1.6, or no torch file at all
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} ({size:,} bytes) is truncated or damaged: {_line(error)}") from None
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
        raise UserError(f"{path} has compressed parts, which torch does not write: refused")


def _check_extent(path: Path, size: int, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are larger than what the file stores for them, such as views with stride 0."""
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_quantized or t.device.type != "cpu":
            raise UserError(f"{path}: {name} is not an ordinary dense tensor")
        if t.numel() * t.element_size() > min(size, t.untyped_storage().nbytes()):
            raise UserError(f"{path}: {name} has {t.numel():,} elements, more than the file stores for it")


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return re.sub(r"\s+", " ", text.splitlines()[0])[:200] if text else type(error).__name__


def clean_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Today's names: no `model.` prefix, no metric counters, `conv` for the old `conv1` of a mixer."""
    cleaned: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if "metrics" in key:
            continue
        name = re.sub(r"^(_orig_mod\.|module\.|model\.)+", "", key)
        name = re.sub(r"(?<=\.)conv1(?=\.)", "conv", name) if ".mixer." in name else name
        if name in cleaned:
            raise UserError(f"two keys of the file mean {name}: {key} and another")
        cleaned[name] = value
    return cleaned


def common_dtype(tensors: Mapping[str, Tensor], source: str) -> torch.dtype:
    """The one dtype that holds what a file's tensors hold; float64 counts as float32, and whole numbers do not count."""
    common: torch.dtype | None = None
    for name, t in tensors.items():
        if t.is_floating_point() or t.is_complex():
            if t.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                kind = str(t.dtype).removeprefix("torch.")
                raise UserError(f"{source}: {name} is {kind}; weights are needed as float32, bfloat16 or float16")
            common = t.dtype if common is None else torch.promote_types(common, t.dtype)
    return torch.float32 if common in (None, torch.float64) else common


def assign(
    model: nn.Module,
    tensors: dict[str, Tensor],
    *,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    optional: Callable[[str], bool] = lambda key: False,
) -> None:
    """Put `tensors` into `model` (on the meta device), each key and shape checked, as `dtype`.

    `tensors` is emptied on the way, so that nothing is held twice. Raises `UserError` with every key that is missing,
    unexpected or misshapen.
    """
    wanted: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    wanted |= dict(model.named_buffers(remove_duplicate=False))
    persistent = model.state_dict(keep_vars=True).keys()
    problems = [
        f"missing {name} {tuple(wanted[name].shape)}"
        for name in persistent
        if name not in tensors and not optional(name)
    ]
    problems += [f"unexpected {name} {tuple(tensors[name].shape)}" for name in tensors if name not in persistent]
    for name in persistent:
        if name in tensors:
            t, want = tensors[name], tuple(wanted[name].shape)
            if tuple(t.shape) != want:
                problems.append(f"{name} has shape {tuple(t.shape)}, expected {want}")
            elif not t.is_floating_point() and wanted[name].is_floating_point():
                problems.append(f"{name} is {str(t.dtype).removeprefix('torch.')}, floating point was expected")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{source}: the weights do not fit the config: {'; '.join(problems[:4])}{more}")

    shared: dict[int, nn.Parameter] = {}
    for name in list(tensors):
        t = tensors.pop(name)
        old = wanted[name]
        if id(old) in shared:  # tied: the first tensor serves both names
            continue
        # The sum is finite unless a value is not (or the sum overflows, which the second look clears).
        wide = torch.float32 if t.itemsize < 4 else None
        suspect = t.is_floating_point() and not bool(torch.isfinite(t.sum(dtype=wide)))
        if suspect and not bool(torch.isfinite(t).all()):
            raise UserError(f"{source}: {name} holds NaN or infinite values; the file is damaged")
        target = dtype if t.is_floating_point() else None
        t = t.to(device=device, dtype=target)
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(t, requires_grad=old.requires_grad)
            shared[id(old)] = new
            for other in model.modules():
                for key, p in list(other._parameters.items()):
                    if p is old:
                        other._parameters[key] = new
        else:
            module._buffers[leaf] = t


def merge_tied(tensors: dict[str, Tensor], embeddings: str, head: str, why: str) -> None:
    """Leave one of two tied tensors, as `embeddings`; refuse two that differ."""
    if head not in tensors:
        return
    if embeddings in tensors:
        one, other = tensors[embeddings], tensors[head]
        if one.data_ptr() != other.data_ptr() and not torch.equal(one, other):
            raise UserError(f"{why}, but {head} differs from {embeddings}")
    tensors[embeddings] = tensors.pop(head)


def count_layers(tensors: Mapping[str, Tensor], pattern: str, n_layer: int, key: str) -> None:
    """Refuse a config with another number of layers than the weight file, before the model is built.

    pattern: matches a tensor's name, with the layer's number as its group. key: what the config calls the number.
    """
    found = {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}
    if n_layer != len(found):
        raise UserError(f"{key} is {n_layer:,}, the weight file has {len(found):,} layers")
