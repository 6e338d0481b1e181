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
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.models.tokenizers import load_tokenizer, tokenizer_errors, tokenizer_folder

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
    """Token ids without special tokens, and back, through a transformers tokenizer.

    name: what the user or the model calls it. `by_pieces`: whether texts may be encoded piece by piece.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name = name
        self.transformers = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)  # None for a slow tokenizer
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._memo: dict[str, tuple[int, ...]] = {}
        self.by_pieces = self._backend is not None and _is_byte_level(self._backend) and self._probe()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, in one batch."""
        with tokenizer_errors(f"the tokenizer {self.name} fails on a text"), _parallel():
            if self._backend is None:
                return [list(self.transformers.encode(text, add_special_tokens=False)) for text in texts]
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
            return str(self.transformers.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
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
    """The tokenizer that a run's metadata name: `tokenizer`, else the evaluated model's (lm-eval adds model_args).

    `model` is what API models call theirs. It counts if it is the name of a repository (owner/name), as servers of open
    models have it, or of a folder; not if it is a name such as gpt-4o.
    """
    for key in ("tokenizer", "pretrained", "checkpoint_name"):
        if isinstance(metadata.get(key), str) and metadata[key]:
            return str(metadata[key])
    name = metadata.get("model")
    if isinstance(name, str) and ("/" in name or tokenizer_folder(name) is not None):
        return name
    return None


def resolve(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a run's metadata name, or None if they name none.

    `revision` and `subfolder` are the model's: they do not apply to a tokenizer of another name. Raises `UserError` if it
    cannot be loaded.
    """
    name = requested(metadata)
    if name is None:
        return None
    own = not metadata.get("tokenizer")
    return load(
        name,
        revision_of(metadata) if own else None,
        metadata.get("trust_remote_code") in (True, "True", "true"),
        metadata.get("subfolder") if own else None,
    )


def revision_of(metadata: Mapping[str, Any]) -> str | None:
    """The model's revision that a run's metadata name."""
    revision = metadata.get("revision")
    return str(revision) if revision else None


@functools.lru_cache(maxsize=4)
def load(
    name: str, revision: str | None = None, trust_remote_code: bool = False, subfolder: str | None = None
) -> Tokenizer:
    """The tokenizer of a model or of that name, by the rule of `jrt_eval.models.tokenizers`. Raises `UserError`."""
    try:
        found = load_tokenizer(name, revision, subfolder=subfolder, trust_remote_code=trust_remote_code)
    except UserError as error:
        line = str(error).partition("; give a folder or a hub id as tokenizer=")[0]
        raise UserError(f"{line}; give a tokenizer with --metadata tokenizer=FOLDER_OR_HUB_ID") from None
    return Tokenizer(name, found)
