"""A checkpoint's files, in a folder or on the Hugging Face hub, and what its config.json describes. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jrt_eval import minis
from jrt_eval.errors import UserError, nearest

# values of `arch` -> family
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

# model_type of flash-linear-attention's configs, for where it is not installed
_FLA_TYPES = {
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


class Checkpoint:
    """A checkpoint's files by folder, name of a mini checkpoint, or hub id; `subfolder`: where they are inside it."""

    def __init__(self, name: str | Path, revision: str | None = None, subfolder: str | None = None) -> None:
        self.name = str(name)
        self.revision = revision
        self.subfolder = subfolder or ""
        if self.subfolder.startswith("/") or ".." in Path(self.subfolder).parts:
            raise UserError(f"subfolder={subfolder} must be a path inside {name}")
        self.folder: Path | None = None
        self.offline = False  # files came from the hub's local cache, the hub could not be reached
        path = Path(name).expanduser()
        if path.is_dir():
            self.folder = path
        elif (mini := minis.find(self.name)) is not None:
            self.folder = mini
        elif path.is_file():
            raise UserError(f"{path} is a file: name the folder that holds config.json and the weights")
        elif path.is_absolute() or self.name.startswith((".", "~")) or self.name.count("/") > 1:
            raise UserError(f"{path}: no such folder, and a hub id has the form owner/name")

    @property
    def location(self) -> str:
        """The first argument of transformers' `from_pretrained`."""
        return self.name if self.folder is None else str(self.folder)

    @property
    def options(self) -> dict[str, str]:
        """Further arguments of `from_pretrained`."""
        given = {"revision": self.revision, "subfolder": self.subfolder}
        return {key: value for key, value in given.items() if value}

    def get(self, filename: str) -> Path | None:
        """The local path of a file, downloaded if needed; None where the checkpoint has no such file."""
        if self.folder is not None:
            path = self.folder / self.subfolder / filename
            return path if path.is_file() else None
        import huggingface_hub.errors as hub
        import requests
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, filename, subfolder=self.subfolder or None, revision=self.revision))
        except hub.LocalEntryNotFoundError:
            if filename != "config.json" and self._cached("config.json"):
                # An earlier download. Only the hub could say which files the repository lacks.
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
            hf_hub_download(
                self.name, filename, subfolder=self.subfolder or None, revision=self.revision, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return False
        return True

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        path = self.get("config.json")
        if path is None:
            raise UserError(f"{self.name} has no config.json: is it a checkpoint's folder?")
        return read_json(path)

    def weight_files(self) -> dict[Path, set[str] | None]:
        """The weight files, each with the names of the tensors to read from it; None: all.

        An index assigns every tensor to one file; a tensor of the same name in another file is not read.
        """
        for name in WEIGHT_FILES:
            path = self.get(name)
            if path is None:
                continue
            return self._shards(path) if name.endswith(".index.json") else {path: None}
        looked = ", ".join(WEIGHT_FILES)
        if self.offline:
            raise UserError(
                f"{self.name}: the Hugging Face hub cannot be reached, and its local cache has no weights ({looked})"
            )
        raise UserError(f"{self.name} has no weights: looked for {looked}")

    def _shards(self, index: Path) -> dict[Path, set[str] | None]:
        assigned = read_json(index).get("weight_map")
        if not isinstance(assigned, dict) or not assigned or not all(isinstance(v, str) for v in assigned.values()):
            raise UserError(f"{index} is not an index of weight files (a JSON object with weight_map)")
        shards: dict[Path, set[str] | None] = {}
        for shard in sorted(set(assigned.values())):
            if Path(shard).name != shard:
                raise UserError(f"{index} lists {shard!r}: a weight file must be in the folder of its index")
            path = self.get(shard)
            if path is None:
                raise UserError(f"{index} lists {shard}, which does not exist")
            shards[path] = {name for name, file in assigned.items() if file == shard}
        return shards


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; a key that occurs twice in one object is refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: the key {twice[:80]!r} occurs twice in one object: remove one")
        return result

    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a JSON {type(held).__name__}, an object is needed")
    return held


@cache
def fla_types() -> frozenset[str]:
    """model_type of each of flash-linear-attention's configs; those that transformers has as well are transformers'.

    The installed package's files are read and not imported, which would import Triton.
    """
    found = set(_FLA_TYPES)
    for folder in _folders("fla"):
        for path in folder.glob("models/*/configuration_*.py"):
            found |= set(re.findall(r"^ +model_type\b.*=\s*['\"]([\w-]+)['\"]", path.read_text("utf-8"), re.MULTILINE))
    theirs = {path.name for folder in _folders("transformers") for path in folder.glob("models/*")}
    return frozenset(found - theirs)


def _folders(package: str) -> list[Path]:
    spec = find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def family_of(config: Mapping[str, Any], arch: str | None = None) -> str:
    """Which loader a config needs: "jrt" (JRT, Based, attention of the release), "mamba", "fla" or "transformers"."""
    if arch is not None:
        key = str(arch).lower()
        if key not in ARCHES:
            raise UserError(f"arch {arch!r} is not known, known are: {', '.join(ARCHES)}" + nearest(key, list(ARCHES)))
        return ARCHES[key]
    kind = config.get("model_type")
    if kind in ("mamba", "mamba2", "falcon_mamba") and "hidden_size" in config:
        return "mamba"
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
    return "fla" if kind in fla_types() else "transformers"
