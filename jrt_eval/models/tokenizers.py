"""The tokenizer rule: which tokenizer belongs to a model or name, and how it is loaded. Imports no torch.

A tokenizer that the user names is used. Otherwise it is the model's own, at the model's revision. A checkpoint without
tokenizer files gets the one that it was trained with, as far as its config.json says so (`default_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jrt_eval import minis
from jrt_eval.errors import UserError
from jrt_eval.models.checkpoints import Checkpoint, read_json

GPT2, GPT_NEOX = "gpt2", "EleutherAI/gpt-neox-20b"

# A checkpoint that has one of these files brings its own tokenizer.
FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)

# Names of the special tokens of a folder that has only a vocabulary, most usual first.
_END = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")
_BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>")


def load_tokenizer(
    name: str | Path, revision: str | None = None, *, subfolder: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The transformers tokenizer of a folder, a tokenizer.json, a mini checkpoint, or a hub id.

    name: of a model or of a tokenizer; "mini" means the one of all mini checkpoints. A folder may hold only a
    tokenizer.json, or only GPT-2's vocab.json and merges.txt. Raises `UserError` if there is no tokenizer.
    """
    path = minis.TOKENIZER if str(name) == "mini" else Path(name).expanduser()
    try:
        if path.is_file():
            return _wrap(_from_file(path), name)
        checkpoint = Checkpoint(path if path.is_dir() else name, revision, subfolder)
        own = [file for file in FILES if checkpoint.get(file) is not None][:1]
        if not own:
            default = default_tokenizer(_config(checkpoint))
            if default is not None:
                return load_tokenizer(default)
        folder = None if checkpoint.folder is None else checkpoint.folder / checkpoint.subfolder
        if folder is not None and not own and not any(folder.glob("*token*")):
            raise UserError(f"{name} has no tokenizer (looked for {', '.join(FILES)})")
        if folder is not None and own == ["tokenizer.json"]:
            return _wrap(_from_file(folder / "tokenizer.json"), name)
        if folder is not None and own == ["vocab.json"] and (folder / "merges.txt").is_file():
            return _wrap(_gpt2(folder), name)
        return _from_transformers(checkpoint, name, trust_remote_code)
    except UserError as error:
        if "tokenizer=" in str(error):
            raise
        raise UserError(f"{error}; give a folder or a hub id as tokenizer=...") from None


def default_tokenizer(config: Mapping[str, Any]) -> str | None:
    """The tokenizer of a checkpoint without tokenizer files, or None if its config does not tell.

    The release's training code used GPT-2's vocabulary for all its models; its configs have the key `n_embd`, also
    those of its Mamba models, whose vocab_size is GPT-NeoX's. In other configs vocab_size decides.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int) or size < 50257:
        return None
    if "n_embd" in config or size == 50257:
        return GPT2
    # GPT-NeoX has 50,277 tokens; state-spaces' checkpoints give this number, or a multiple of 8 or 16 above it.
    return GPT_NEOX if size in (50277, 50280, 50288) else None


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = checkpoint.get("config.json")
    return {} if path is None else read_json(path)


def _from_transformers(checkpoint: Checkpoint, name: str | Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    with tokenizer_errors(f"cannot load the tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.location, trust_remote_code=trust_remote_code, **checkpoint.options
        )
        if len(tokenizer) < 2:  # transformers 5 makes an empty one for a repository without tokenizer files
            raise ValueError("its vocabulary is empty")
    tokenizer.name_or_path = str(name)
    return tokenizer


def _from_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    with tokenizer_errors(f"{path} is not a tokenizer"):
        return Tokenizer.from_file(str(path))


def _gpt2(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    with tokenizer_errors(f"{folder} has no byte-level BPE (vocab.json, merges.txt)"):
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Any, name: str | Path) -> Any:
    """A transformers tokenizer around one of `tokenizers`; special tokens are the first of the usual names it has."""
    from transformers import PreTrainedTokenizerFast

    end = next((token for token in _END if tokenizer.token_to_id(token) is not None), None)
    begin = next((token for token in _BEGIN if tokenizer.token_to_id(token) is not None), None)
    if begin is None and end == "<|endoftext|>":  # in GPT-2's family it also begins a text
        begin = end
    special = {key: token for key, token in (("eos_token", end), ("bos_token", begin)) if token is not None}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.name_or_path = str(name)
    return wrapped


def tokenizer_folder(name: str | None) -> Path | None:
    """The folder of a tokenizer's files; None for a hub id."""
    if name is None:
        return None
    path = minis.TOKENIZER if name == "mini" else minis.find(name) or Path(name).expanduser()
    return path if path.is_dir() else None


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Inside the block, whatever transformers and tokenizers raise becomes a `UserError` that begins with `what`.

    A panic of the Rust code in `tokenizers` counts too, although its class derives from BaseException.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).split(". ", 1)[0][:300]
