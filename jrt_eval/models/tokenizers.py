"""Tokenizers by folder or hub id, also from folders that hold nothing but the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jrt_eval import minis
from jrt_eval.errors import UserError

_END = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")


def load_tokenizer(name: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """A transformers tokenizer from a hub id or a folder.

    Beside what transformers reads, a folder may hold only GPT-2's `vocab.json` and `merges.txt`, or only a
    `tokenizer.json`; then the end-of-text token is the first of the usual names that its vocabulary has.
    """
    folder = minis.find(str(name)) or Path(name).expanduser()
    try:
        if folder.is_dir():
            if (folder / "tokenizer_config.json").is_file():
                pass
            elif (folder / "tokenizer.json").is_file():
                from tokenizers import Tokenizer

                return _wrap(Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
            elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return _wrap(_gpt2(folder), folder)
            else:
                raise UserError(
                    f"{folder} holds no tokenizer: looked for tokenizer.json, and vocab.json with merges.txt"
                )
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else str(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers and tokenizers raise many kinds
        line = (" ".join(str(error).split()) or type(error).__name__).split(". ", 1)[0][:300]
        raise UserError(
            f"cannot load the tokenizer {name}: {line}; give a hub id or a folder as tokenizer=..."
        ) from None


def _gpt2(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Any, folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    end = next((t for t in _END if tokenizer.token_to_id(t) is not None), None)
    special = {} if end is None else {"eos_token": end, "bos_token": end}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.name_or_path = str(folder)
    return wrapped
