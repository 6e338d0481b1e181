"""Checkpoints by folder or hub id: find the files, read tensors without executing anything, check every key.

Weights are read with `torch.load(weights_only=True, mmap=True)` or safetensors, into a model built without memory of
its own (meta device), so that loading peaks near the size of the file.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval import minis
from jrt_eval.errors import UserError, nearest
from jrt_eval.models.recurrent.config import MixerConfig, ModelConfig, parse_config, read_config
from jrt_eval.models.recurrent.model import JRTModel

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

# what `arch=` may say -> family
ARCHES = {
    "jrt": "jrt",
    "based": "jrt",
    "attn": "jrt",
    "attention": "jrt",
    "mamba": "mamba",
    "mamba1": "mamba",
    "mamba2": "mamba",
    "transformers": "transformers",
    "hf": "transformers",
    "fla": "fla",
}

# model_type of flash-linear-attention's configs
FLA_TYPES = {
    "abc", "comba", "deltaformer", "delta_net", "forgetting_transformer", "gated_deltanet", "gated_deltaproduct",
    "gla", "gsa", "hgrn", "hgrn2", "kda", "lightnet", "linear_attn", "log_linear_mamba2", "mesa_net", "mla", "moba",
    "mom", "nsa", "path_attn", "retnet", "rodimus", "rwkv6", "rwkv7", "samba",
}  # fmt: skip

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def as_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name; None and "auto" are the file's own."""
    if name is None or isinstance(name, torch.dtype):
        return name
    key = str(name).removeprefix("torch.").lower()
    if key == "auto":
        return None
    if key not in DTYPES:
        raise UserError(
            f"dtype {name!r} is not known, these are: auto, {', '.join(DTYPES)}" + nearest(key, list(DTYPES))
        )
    return DTYPES[key]


class Source:
    """A checkpoint's files, in a folder or on the hub."""

    def __init__(self, name: str | Path, revision: str | None = None) -> None:
        self.name = str(name)
        self.revision = revision
        self.folder: Path | None = None
        self.offline = False  # files came from the hub's local cache, without the hub
        path = Path(name).expanduser()
        if path.is_dir():
            self.folder = path
        elif (mini := minis.find(self.name)) is not None:
            self.folder = mini
        elif path.is_file():
            raise UserError(f"{path} is a file: name the folder that holds config.json and the weights")
        elif path.is_absolute() or self.name.startswith((".", "~")) or self.name.count("/") > 1:
            raise UserError(f"no folder {path}, and a hub id reads owner/name")

    def get(self, filename: str) -> Path | None:
        """The local path of a file, downloaded if needed; None where the checkpoint has no such file."""
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
        import huggingface_hub.errors as hub
        import requests
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, filename, revision=self.revision))
        except hub.LocalEntryNotFoundError:
            if filename != "config.json" and self._cached("config.json"):
                # An earlier download: which files the repository lacks, only the hub could say.
                self.offline = True
                return None
            close = nearest(self.name, list(minis.NAMES))
            raise UserError(
                f"{self.name}: no such folder{close}, and the Hugging Face hub cannot be reached for {filename}; "
                "download the repository first and give its folder"
            ) from None
        except hub.GatedRepoError:
            raise UserError(f"{self.name} is gated on the Hugging Face hub: accept its terms and log in") from None
        except hub.RevisionNotFoundError:
            raise UserError(f"{self.name} has no revision {self.revision!r} on the Hugging Face hub") from None
        except hub.RepositoryNotFoundError:
            close = nearest(self.name, list(minis.NAMES))
            raise UserError(
                f"{self.name}: no such folder, and no such repository on the Hugging Face hub{close}"
            ) from None
        except hub.HFValidationError:
            raise UserError(f"{self.name!r}: no such folder, and not the form of a hub id (owner/name)") from None
        except hub.EntryNotFoundError:
            return None
        except (hub.HfHubHTTPError, requests.RequestException, OSError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{self.name}: no such folder, and the Hugging Face hub answers: {line}") from None

    def _cached(self, filename: str) -> bool:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            hf_hub_download(self.name, filename, revision=self.revision, local_files_only=True)
        except LocalEntryNotFoundError:
            return False
        return True

    def config(self) -> dict[str, Any]:
        path = self.get("config.json")
        if path is None:
            raise UserError(f"{self.name} holds no config.json: is it a checkpoint's folder?")
        return read_config(path)

    def weight_files(self) -> list[Path]:
        """The files that hold the weights: one, or the shards that an index lists."""
        for name in WEIGHT_FILES:
            path = self.get(name)
            if path is None:
                continue
            if not name.endswith(".index.json"):
                return [path]
            try:
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                raise UserError(f"{path} is no index of weight files (a JSON object with weight_map)") from None
            paths = []
            for shard in shards:
                if not isinstance(shard, str) or Path(shard).name != shard:
                    raise UserError(f"{path} lists {shard!r}: a weight file must stand beside its index")
                found = self.get(shard)
                if found is None:
                    raise UserError(f"{path} lists {shard}, which is not there")
                paths.append(found)
            return paths
        looked = ", ".join(WEIGHT_FILES)
        if self.offline:
            raise UserError(
                f"{self.name}: the Hugging Face hub cannot be reached, and its local cache holds no weights ({looked})"
            )
        raise UserError(f"{self.name} holds no weights: looked for {looked}")


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
            raise UserError(f"{path} ({size:,} bytes) is truncated or no safetensors file: {_line(error)}") from None
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
        raise UserError(f"{path} ({size:,} bytes) is truncated, or no file of tensors: {_line(error)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} ({size:,} bytes) is truncated or no torch file: {_line(error)}") from None
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]  # as training checkpoints hold it
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise UserError(f"{path} holds a {type(held).__name__}, a dict of tensors is needed")
    return held


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


def family_of(config: Mapping[str, Any], arch: str | None = None) -> str:
    """Which loader a config needs: "jrt" (JRT, Based, attention of the release), "mamba", "fla" or "transformers"."""
    if arch is not None:
        key = str(arch).lower()
        if key not in ARCHES:
            raise UserError(f"arch {arch!r} is not known, these are: {', '.join(ARCHES)}" + nearest(key, list(ARCHES)))
        return ARCHES[key]
    kind = config.get("model_type")
    if kind in ("mamba", "mamba2") and "hidden_size" in config:
        return "transformers"
    if "mixer" in config or "alt_mixer" in config:
        return "jrt"
    if (
        "d_model" in config
        and "n_layer" in config
        and ("ssm_cfg" in config or kind in (None, "gpt2", "mamba", "mamba2"))
    ):
        return "mamba"
    if "n_embd" in config and any(
        key in config for key in ("rms_norm", "rotary_emb_fraction", "pad_vocab_size_multiple", "alt_mixer_2")
    ):
        return "jrt"
    return "fla" if kind in FLA_TYPES else "transformers"


def _expanded(config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelConfig:
    """`expand` of each convolution that the config leaves open, from its in_proj (expand * d, d)."""

    def expand(i: int, mixer: MixerConfig) -> MixerConfig:
        weight = tensors.get(f"transformer.layers.{i}.mixer.in_proj.weight")
        if mixer.kind != "convolution" or mixer.expand is not None or weight is None:
            return mixer
        return replace(mixer, expand=weight.shape[0] // config.d_model)

    return replace(config, mixers=tuple(expand(i, mixer) for i, mixer in enumerate(config.mixers)))


def load_jrt(
    source: Source, raw: dict[str, Any], *, device: torch.device, dtype: torch.dtype | None, backend: str
) -> JRTModel:
    """A checkpoint of the release's own form: JRT-RNN, Based or attention."""
    config = parse_config(raw, f"{source.name}/config.json")
    tensors: dict[str, Tensor] = {}
    for path in source.weight_files():
        tensors |= read_tensors(path)
    tensors = clean_keys(tensors)
    embeddings, head = "transformer.embeddings.word_embeddings.weight", "lm_head.weight"
    if config.tied and embeddings in tensors and head in tensors:
        if tensors[embeddings].data_ptr() != tensors[head].data_ptr() and not torch.equal(
            tensors[embeddings], tensors[head]
        ):
            raise UserError(f"{source.name}: tie_word_embeddings is true, but {head} differs from {embeddings}")
        del tensors[head]
    elif config.tied and head in tensors:
        tensors[embeddings] = tensors.pop(head)
    # Three facts may stand in the weights alone: the MLP's rounded width, how far a convolution expands, and whether it
    # has a bias.
    fc1 = tensors.get("transformer.layers.0.mlp.fc1.weight")
    inner = fc1.shape[0] // (2 if config.gated else 1) if fc1 is not None and fc1.dim() == 2 else None
    config = _expanded(config, tensors)
    conv_bias = any(re.search(r"\.mixer\.conv\.conv\.bias$", key) for key in tensors)
    with torch.device("meta"):
        model = JRTModel(config, raw, backend=backend, inner=inner, conv_bias=conv_bias)
    decay_key = "transformer.decay.decay"
    log_decay = tensors.pop(decay_key, None)  # the buffer may stand in the file of a model whose layers do not decay
    decays: Any = getattr(model.transformer, "decay", None)
    if decays is not None:
        if log_decay is None:
            if config.decay_const is None:
                raise UserError(
                    f"{source.name}: fixed_decay is true, with neither decay_const nor {decay_key} to say which"
                )
            with torch.device("cpu"):
                log_decay = type(decays)(decays.decay.numel(), config.decay_const).decay
        if log_decay.numel() != decays.decay.numel():
            raise UserError(
                f"{source.name}: {decay_key} has shape {tuple(log_decay.shape)}, expected {tuple(decays.decay.shape)}"
            )
    optional = {decay_key, head} if config.tied else {decay_key}
    kind = common_dtype(tensors, source.name)
    assign(model, tensors, source=source.name, device=device, dtype=dtype or kind, optional=lambda key: key in optional)
    model.tie_weights()
    if decays is not None and log_decay is not None:
        # log a_h is small: it stays float32 whatever the weights are
        decays.decay = log_decay.reshape(-1).to(device=device, dtype=torch.float32)
        if not bool(torch.isfinite(decays.decay).all()):
            raise UserError(f"{source.name}: {decay_key} holds NaN or infinite values; the file is damaged")
    return model.eval()


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
) -> nn.Module:
    """Load a checkpoint by folder or hub id, in evaluation mode.

    device: None takes cuda where it is. dtype: "auto" keeps the file's. backend: of the kernels ("auto", "torch",
    "cpu", "cuda", "fla").
    arch: jrt, based, attn, mamba, mamba2, transformers or fla, where config.json should not decide.
    cuda_graphs: decode JRT and Based models through CUDA graphs, on a GPU.

    The module's call takes input_ids (batch, length) and returns an object with `.logits` (batch, length,
    vocabulary), padding rows of the vocabulary included; `.generate(input_ids, max_new_tokens=...)` returns prompt
    and continuation; `.state_size(length)` the bytes of one sequence's state. Raises `UserError`, one line, for
    anything wrong with the checkpoint.
    """
    where = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = as_dtype(dtype)
    source = Source(path_or_repo, revision)
    raw = source.config()
    family = family_of(raw, arch)
    model: Any
    if family == "jrt":
        model = load_jrt(source, raw, device=where, dtype=kind, backend=backend)
        model.cuda_graphs = cuda_graphs
        if arch is not None and model.family not in (arch.lower().replace("attention", "attn"), "hybrid"):
            log.warning(
                "%s: arch=%s is given, its config describes %s, which is loaded", source.name, arch, model.family
            )
    else:
        from jrt_eval.models import transformers as hf

        if family == "mamba":
            model = hf.load_mamba(source, raw, device=where, dtype=kind, arch=arch)
        else:
            model = hf.load_transformers(
                source, raw, device=where, dtype=kind, fla=family == "fla", trust_remote_code=trust_remote_code
            )
    model.source, model.revision = source.name, revision
    return model  # type: ignore[no-any-return]


def save_pretrained(model: JRTModel, folder: str | Path, *, safetensors: bool = False) -> None:
    """Write a model in the released form: config.json, and pytorch_model.bin or model.safetensors (tied weights
    once).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.raw_config, indent=1) + "\n", encoding="utf-8")
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    if safetensors:
        from safetensors.torch import save_file

        if model.config.tied:
            state.pop("lm_head.weight", None)
        save_file(state, str(folder / "model.safetensors"))
    else:
        torch.save(state, folder / "pytorch_model.bin")
