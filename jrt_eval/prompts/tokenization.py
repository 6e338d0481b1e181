"""The evaluated model's tokenizer, and fast exact token counts of long documents.

`tokenizers` encodes a few hundred thousand tokens a second, so windowing thousands of book-length documents would take
minutes. Byte-level BPE never merges across the boundary before a single blank that stands between a printing character
and an ASCII letter, so text may be encoded there piece by piece, and a piece met before needs no second encoding: the
ids are the same, several times sooner. Whether a tokenizer is of that kind is read off its parts and then tried on text;
any other is asked to encode whole documents.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from jrt_eval import minis
from jrt_eval.errors import UserError

# Text may be cut before a blank that stands between a printing character and an ASCII letter.
_SEAM = re.compile(r"(?<=\S)(?= [A-Za-z])")
_MEMO_PIECES = 400_000  # pieces remembered, about 100 MB, before the memo starts afresh
_PROBE = (
    "It's 1,234.56 (the \"year\" 1998–99), isn't it?\nNew line;  two blanks, tab\tand naïve café—ﬁn… 日本語 Tokyo. "
    "We'll they've I'M don'T x=[1, 2]; e\u0301 a 😀 b http://a.b/c?d=e f_g H2O 3 4 five\r\n six ... ... seven! "
)


@contextmanager
def _parallel() -> Iterator[None]:
    """Let `tokenizers` use all cores: lm-eval turns that off for the whole process."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        # Left "false" rather than unset, so that a later fork is silent about the threads used here.
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if before is None else before


class Tokenizer:
    """Token ids without special tokens, and back, through a `tokenizers.Tokenizer` or (`slow`) a transformers one."""

    def __init__(self, name: str, backend: Any = None, slow: Any = None, model_max_length: int | None = None) -> None:
        self.name = name
        self.model_max_length = model_max_length
        self._backend, self._slow = backend, slow
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self._memo: dict[str, tuple[int, ...]] = {}
        self.by_pieces = backend is not None and _is_byte_level(backend) and self._probe()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, in one batch."""
        if self._backend is None:
            return [list(self._slow.encode(text, add_special_tokens=False)) for text in texts]
        with _parallel():
            batch = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
            return [encoding.ids for encoding in batch(list(texts), add_special_tokens=False)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        if not self.by_pieces:
            return [len(ids) for ids in self.encode(texts)]
        pieces = [_SEAM.split(text) for text in texts]
        self._learn(piece for text in pieces for piece in text)
        return [sum(map(len, map(self._memo.__getitem__, text))) for text in pieces]

    def encode_with_prefix(self, texts: Sequence[str], positions: Sequence[int]) -> list[tuple[list[int], int]]:
        """For each text its ids, and how many tokens `text[:position]` has when it is encoded by itself."""
        if not self.by_pieces:
            encoded = self.encode([*texts, *(text[:at] for text, at in zip(texts, positions, strict=True))])
            return [(ids, len(prefix)) for ids, prefix in zip(encoded, encoded[len(texts) :], strict=False)]
        pieces = [_SEAM.split(text) for text in texts]
        prefixes = [_prefix(text, parts, at) for text, parts, at in zip(texts, pieces, positions, strict=True)]
        self._learn([*(piece for parts in pieces for piece in parts), *(rest for _, rest in prefixes)])
        ids_of = self._memo.__getitem__
        result = []
        for parts, (whole, rest) in zip(pieces, prefixes, strict=True):
            ids = list(map(ids_of, parts))
            before = sum(map(len, ids[:whole])) + len(ids_of(rest))
            result.append(([i for piece in ids for i in piece], before))
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, nothing skipped and nothing tidied."""
        if self._backend is None:
            return str(self._slow.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _learn(self, pieces: Iterable[str]) -> None:
        wanted = set(pieces)
        unknown = sorted(wanted.difference(self._memo))
        if len(self._memo) + len(unknown) > _MEMO_PIECES:
            self._memo.clear()
            unknown = sorted(wanted)
        self._memo.update(zip(unknown, map(tuple, self.encode(unknown)), strict=True))

    def _probe(self) -> bool:
        return [i for ids in self.encode(_SEAM.split(_PROBE)) for i in ids] == self.encode([_PROBE])[0]


def _prefix(text: str, parts: Sequence[str], position: int) -> tuple[int, str]:
    """`text[:position]` as the number of whole pieces that it begins with, and the rest of it.

    The prefix's own seams are those of the text that lie two characters or more before its end.
    """
    stop = len(text[:position])
    whole, begin = 0, 0
    for index, end in enumerate(accumulate(map(len, parts)), start=1):
        if end + 2 > stop:
            break
        whole, begin = index, end
    return whole, text[begin:stop]


def _is_byte_level(backend: Any) -> bool:
    """Whether the tokenizer's parts allow encoding by pieces: BPE over bytes, split by rules on characters alone."""
    parts = json.loads(backend.to_str())
    model, normalizer, splitter = parts["model"], parts.get("normalizer"), parts.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or model.get("dropout") or (normalizer and normalizer["type"] != "NFC"):
        return False
    steps = splitter.get("pretokenizers", [splitter])
    if not steps or steps[-1].get("type") != "ByteLevel" or any(step.get("add_prefix_space") for step in steps):
        return False
    if any(step.get("type") not in ("ByteLevel", "Split", "Digits") for step in steps):
        return False
    if not any(step.get("type") == "Split" or step.get("use_regex", True) for step in steps):
        return False
    return not any(_crosses_seams(token) for token in parts.get("added_tokens", ()))


def _crosses_seams(token: Mapping[str, Any]) -> bool:
    content = token["content"]
    if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
        return True
    # "foo bar" lies across a seam and " foo" starts at one; runs of blanks and <|endoftext|> do neither.
    return bool(re.search(r"\S\s|\s\S", content)) or (content != content.lstrip() and content.strip() != "")


def requested(metadata: Mapping[str, Any]) -> str | None:
    """The tokenizer that a run's metadata name: `tokenizer`, else the evaluated model's (lm-eval adds model_args)."""
    for key in ("tokenizer", "pretrained", "checkpoint_name"):
        if isinstance(metadata.get(key), str) and metadata[key]:
            return str(metadata[key])
    return None


def resolve(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a run's metadata name, or None where they name none.

    `revision` counts only where the tokenizer is the model's own. Raises `UserError` if it cannot be loaded.
    """
    name = requested(metadata)
    if name is None:
        return None
    own = not metadata.get("tokenizer")
    revision = metadata.get("revision") if own else None
    return load(name, str(revision) if revision else None, metadata.get("trust_remote_code") in (True, "True", "true"))


@functools.lru_cache(maxsize=4)
def load(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a local folder (or tokenizer.json) or a hub id.

    A checkpoint that brings none, as the released JRT and Based ones, gets the one that its vocabulary size tells.
    """
    if (mini := minis.find(name)) is not None:
        own = _from_transformers(str(mini), None, False)
        own.name = name
        return own
    path = Path(name).expanduser()
    if path.is_file() and path.name.endswith(".json"):
        return Tokenizer(name, _from_file(path))
    if path.is_dir():
        configured = (path / "tokenizer_config.json").is_file()
        if not configured and (path / "tokenizer.json").is_file():
            return Tokenizer(name, _from_file(path / "tokenizer.json"))
        if not configured and (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return Tokenizer(name, _gpt2(path))
        if not any(path.glob("*token*")) and not (path / "vocab.json").is_file():
            return _stand_in(name, path / "config.json")
    elif name.startswith((".", "/", "~")):
        raise UserError(f"no tokenizer at {name}: no such folder")
    return _from_transformers(name, revision, trust_remote_code)


def _from_file(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:
        raise UserError(f"{path} is not a tokenizer: {_one_line(error)}") from error


def _gpt2(path: Path) -> Any:
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    try:
        backend = ByteLevelBPETokenizer(str(path / "vocab.json"), str(path / "merges.txt"))._tokenizer
    except Exception as error:
        raise UserError(f"{path} holds no byte-level BPE (vocab.json, merges.txt): {_one_line(error)}") from error
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return backend


def _from_transformers(name: str, revision: str | None, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    extra = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=trust_remote_code, **extra)
        if len(tokenizer) < 2:  # transformers 5 makes an empty one for a repo without tokenizer files
            raise ValueError("it has no vocabulary")
    except Exception as error:
        if (config := _hub_config(name, revision)) is not None:
            return _stand_in(name, config)
        raise UserError(
            f"no tokenizer for {name!r} ({_one_line(error)}): give one with --metadata tokenizer=FOLDER_OR_HUB_ID"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    longest = getattr(tokenizer, "model_max_length", None)
    longest = int(longest) if isinstance(longest, (int, float)) and longest < 1e9 else None
    return Tokenizer(name, backend, None if backend is not None else tokenizer, longest)


def _hub_config(name: str, revision: str | None) -> Path | None:
    """The `config.json` of a hub repo (from the cache, or fetched), None where there is none to be had."""
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception:  # noqa: BLE001 - offline, private, no such repo: whatever it is, there is no config
        return None


def _stand_in(name: str, config: Path) -> Tokenizer:
    """The tokenizer of a checkpoint without one, by its vocabulary: 50,257 entries are GPT-2's, 50,277 GPT-NeoX's."""
    try:
        size = int(json.loads(config.read_text())["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        size = 0
    known = {50257: "gpt2", 50277: "EleutherAI/gpt-neox-20b", 50280: "EleutherAI/gpt-neox-20b"}
    if size not in known:
        raise UserError(f"{name} has no tokenizer: give one with --metadata tokenizer=FOLDER_OR_HUB_ID")
    return load(known[size])


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
