"""Rows of any source, tokenised once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jrt_eval.data.config import Data
from jrt_eval.data.rows import FORMAT, DamagedRows, RowChunk, TokenRows, read_rows, write_rows
from jrt_eval.data.synthetic import synthetic_chunks
from jrt_eval.data.text import find_files, text_chunks
from jrt_eval.errors import UserError
from jrt_eval.files import lock, reason, remove_folder
from jrt_eval.models.tokenizers import tokenizer_folder

log = logging.getLogger(__name__)


def open_rows(data: Data, tokenizer: str | None, cache: Path) -> TokenRows:
    """The rows of `data`, written to a folder in `cache` unless they are there already.

    If several processes ask at once, one writes and the others wait. Damaged rows are written again.
    """
    source = {**asdict(data), "lengths": max(data.lengths)}  # shorter lengths affect only how batches are formed
    identity = {"format": FORMAT, "data": source, "files": _stamps(data), "tokenizer": _fingerprint(tokenizer)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / name
    with lock(cache / f"{name}.lock"):
        try:
            rows = read_rows(folder)
        except DamagedRows as error:
            if folder.exists():
                log.warning("writing the tokens in %s again: they are damaged (%s)", folder, error)
            try:
                remove_folder(folder)
                write_rows(folder, _chunks(data, tokenizer), identity)
                rows = read_rows(folder)
            except (OSError, DamagedRows) as problem:
                raise UserError(f"could not write tokens to {folder}: {reason(problem)}") from problem
    if not len(rows):
        raise UserError(f"no data: the source {data.describe()} has no row that fits lengths {data.lengths}")
    return rows


def _chunks(data: Data, tokenizer: str | None) -> Iterator[RowChunk]:
    if data.synthetic is not None:
        return synthetic_chunks(data.synthetic, tokenizer, max(data.lengths))
    assert tokenizer is not None
    return text_chunks(data, tokenizer)


def _stamps(data: Data) -> list[tuple[str, int, int]]:
    return [(str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in find_files(data)]


def _fingerprint(tokenizer: str | None) -> str | None:
    """A digest of the tokenizer's files, so that rows are written again if they change; a hub id as it is."""
    folder = tokenizer_folder(tokenizer)
    if folder is None:
        return tokenizer
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.startswith(("tokenizer", "vocab", "merges")))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
