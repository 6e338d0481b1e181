"""Text as rows of tokens: files, data sets, and pairs of prompt and completion."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jrt_eval.data.config import Data
from jrt_eval.data.rows import RowChunk
from jrt_eval.errors import UserError
from jrt_eval.models import tokenizers

# A row as text: its prompt (in parts with loss weights, if the prompt itself has loss), and pairs of (text before an
# answer, answer).
RowText = tuple["str | list[tuple[str, int]]", list[tuple[str, str]]]


@lru_cache(maxsize=2)
def load_tokenizer(name: str) -> Any:
    """The tokenizer of that name, by the rule of `jrt_eval.models.tokenizers`; "mini" is that of the mini checkpoints."""
    return tokenizers.load_tokenizer(name)


def text_chunks(data: Data, tokenizer: str) -> Iterator[RowChunk]:
    """All rows of `data.files` or `data.dataset`."""
    encoder = load_tokenizer(tokenizer)
    end = encoder.eos_token_id
    if end is None:
        raise UserError(f"tokenizer {tokenizer}: it has no end-of-text token to put between documents")
    window = max(data.lengths) + 1
    rest = np.zeros(0, dtype=np.int64)
    for batch in _batched(_records(data), 1000):
        if "completion" in batch[0]:
            yield paired_chunk(encoder, [(r["prompt"], [("", r["completion"])]) for r in batch], window)
            continue
        ids = _encode(encoder, [record[data.field] for record in batch])
        stream = np.concatenate([rest, *(np.asarray([*row, end], dtype=np.int64) for row in ids)])
        rows = len(stream) // window
        rest = stream[rows * window :]
        taken = stream[: rows * window]
        yield RowChunk(taken, np.ones(len(taken), np.uint8), np.full(rows, window), np.zeros(rows, dtype=np.int64))


def paired_chunk(encoder: Any, rows: list[RowText], longest: int) -> RowChunk:
    """Rows of (prompt, [(text before an answer, answer), ...]); pairs that exceed `longest` tokens are left out.

    A row without room for its first answer is left out. Parts are tokenised separately, so an answer begins where the
    model begins to generate.
    """
    heads = [[(prompt, 0)] if isinstance(prompt, str) else prompt for prompt, _ in rows]
    parts = [
        text
        for head, (_, pairs) in zip(heads, rows, strict=True)
        for text in (*(part for part, _ in head), *(t for pair in pairs for t in pair))
    ]
    ids = iter(_encode(encoder, parts))
    tokens: list[int] = []
    flags: list[int] = []
    lengths: list[int] = []
    prompts: list[int] = []
    for head, (_, pairs) in zip(heads, rows, strict=True):
        row: list[int] = []
        row_flags: list[int] = []
        for _, weight in head:
            part = next(ids)
            row += part
            row_flags += [min(weight, 255)] * len(part)
        prompt = len(row)
        for _ in pairs:
            before, answer = next(ids), next(ids)
            if len(row) + len(before) + len(answer) <= longest:
                row += before + answer
                row_flags += [0] * len(before) + [1] * len(answer)
        if any(row_flags) and prompt <= longest:
            tokens += row
            flags += row_flags
            lengths.append(len(row))
            prompts.append(prompt)
    return RowChunk(
        np.asarray(tokens, dtype=np.int64),
        np.asarray(flags, dtype=np.uint8),
        np.asarray(lengths, dtype=np.int64),
        np.asarray(prompts, dtype=np.int64),
    )


def find_files(data: Data) -> list[Path]:
    """The files that `data.files` names, in a fixed order."""
    found: list[Path] = []
    for pattern in data.files or []:
        paths = [
            path for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)) if os.path.isfile(path)
        ]
        if not paths:
            raise UserError(f"no data: no file matches {pattern!r}")
        found += map(Path, paths)
    return found


def _encode(encoder: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens. Calling a fast tokenizer's backend takes half the time."""
    fast = getattr(encoder, "backend_tokenizer", None)
    with tokenizers.tokenizer_errors(f"the tokenizer {encoder.name_or_path} fails on a text"):
        if fast is not None:
            return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = encoder(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _records(data: Data) -> Iterator[dict[str, Any]]:
    """Records of the files or of the data set, each checked for the fields that training needs."""
    source: Iterable[tuple[str, Any]]
    if data.dataset is not None:
        source = _dataset_records(data)
    else:
        source = (item for path in find_files(data) for item in _file_records(path, data.field))
    for where, record in source:
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object with fields, got {type(record).__name__}")
        wanted = ("prompt", "completion") if "completion" in record else (data.field,)
        for name in wanted:
            if not isinstance(record.get(name), str):
                raise UserError(f"{where}: no text field {name!r}; it has {', '.join(map(str, record))[:200]}")
            if any("\ud800" <= character <= "\udfff" for character in record[name]):
                raise UserError(f"{where}: field {name!r} contains half of a surrogate pair, which is not Unicode text")
        yield record


def _dataset_records(data: Data) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    # From release 4 on, datasets runs no code of a repository and has no such argument.
    try:
        loaded = load_dataset(data.dataset, data.subset, split=data.split, trust_remote_code=False)
    except Exception as error:
        line = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise UserError(f"data set {data.dataset!r} could not be loaded: {line}") from error
    return ((f"{data.dataset}[{i}]", record) for i, record in enumerate(loaded))


def _file_records(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    try:
        if path.suffix == ".jsonl":
            yield from _json_lines(path)
        elif path.suffix == ".parquet":
            yield from _parquet_records(path)
        elif path.suffix in (".txt", ".md", ".text"):
            yield str(path), {field: path.read_text(encoding="utf-8")}
        else:
            raise UserError(f"{path}: unknown kind of data file; known: .txt, .jsonl, .parquet")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror or error}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}:{number}: not JSON: {str(error)[:200]}") from None


def _parquet_records(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1000):
            for record in batch.to_pylist():
                yield f"{path}[{number}]", record
                number += 1
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0][:200]}") from None


def _batched(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for record in records:
        if batch and ("completion" in record) != ("completion" in batch[0]):
            raise UserError("data: records with and without a 'completion' may not be mixed in one source")
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
