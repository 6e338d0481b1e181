"""Rows of tokens in memory-mapped files: written once per (source, tokenizer), read by every process that trains.

A row is a sequence of tokens with a flag for each (0: belongs to no answer, else its weight, mostly 1) and the length
of its prompt (0: none).
On disk, in a folder of its own: `tokens.bin` (uint16, or uint32 for large vocabularies), `flags.bin` (uint8),
`offsets.npy` (rows + 1), `prompts.npy` and `meta.json`, which is written last: a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jrt_eval.errors import UserError
from jrt_eval.training.config import Data

FORMAT = 1
Ints = npt.NDArray[Any]
# A row as text: its prompt, in parts with weights if something is owed within it, and (text before an answer, answer) pairs.
Text = tuple["str | list[tuple[str, int]]", list[tuple[str, str]]]


@dataclass(frozen=True)
class Chunk:
    """Some rows, concatenated: tokens and flags (n,), lengths and prompt lengths (rows,)."""

    tokens: Ints
    flags: Ints
    lengths: Ints
    prompts: Ints


@dataclass(frozen=True)
class Rows:
    """All rows of a source, memory-mapped."""

    tokens: Ints
    flags: Ints
    offsets: Ints
    prompts: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[Ints, Ints, int]:
        """tokens (n,), flags (n,), prompt length."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.tokens[start:end], self.flags[start:end], int(self.prompts[index])


def open_rows(data: Data, tokenizer: str | None, cache: Path) -> Rows:
    """The rows of `data`, written to a folder of `cache` if they are not there yet.

    Several processes may ask at once: one writes, the others wait for it.
    """
    source = {**asdict(data), "lengths": max(data.lengths)}  # shorter ones only say how batches are made
    identity = {"format": FORMAT, "data": source, "files": _stamps(data), "tokenizer": _fingerprint(tokenizer)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        if not (folder / "meta.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _write(folder, _chunks(data, tokenizer), identity)
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise UserError(f"could not write tokens to {folder}: {error.strerror or error}") from error
    meta = json.loads((folder / "meta.json").read_text())
    offsets = np.load(folder / "offsets.npy")
    if len(offsets) < 2:
        raise UserError(f"no data: the source {_describe(data)} holds no row that fits lengths {data.lengths}")
    return Rows(
        tokens=np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r"),
        flags=np.memmap(folder / "flags.bin", dtype=np.uint8, mode="r"),
        offsets=offsets,
        prompts=np.load(folder / "prompts.npy"),
    )


class _locked:
    """An advisory lock on a file, released also when its holder is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        import fcntl

        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _write(folder: Path, chunks: Iterable[Chunk], identity: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    dtype, lengths, prompts = "uint16", [], []
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "flags.bin").open("wb") as flags:
        for chunk in chunks:
            if dtype == "uint16" and len(chunk.tokens) and int(chunk.tokens.max()) > np.iinfo(np.uint16).max:
                dtype = "uint32"
                tokens.flush()
                small = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
                tokens.seek(0)
                tokens.write(small.astype(np.uint32).tobytes())
            tokens.write(chunk.tokens.astype(dtype).tobytes())
            flags.write(chunk.flags.astype(np.uint8).tobytes())
            lengths.append(chunk.lengths)
            prompts.append(chunk.prompts)
    empty = np.zeros(0, dtype=np.int64)
    all_lengths = np.concatenate([empty, *lengths]).astype(np.int64)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int64))
    np.save(folder / "prompts.npy", np.concatenate([empty, *prompts]).astype(np.int32))
    partial = folder / "meta.json.part"
    partial.write_text(json.dumps({"dtype": dtype, "identity": identity}, indent=1))
    partial.rename(folder / "meta.json")


def _chunks(data: Data, tokenizer: str | None) -> Iterator[Chunk]:
    if data.synthetic is not None:
        from jrt_eval.data import sources

        return sources.chunks(data.synthetic, tokenizer, max(data.lengths))
    assert tokenizer is not None
    return _text_chunks(data, tokenizer)


def _text_chunks(data: Data, tokenizer: str) -> Iterator[Chunk]:
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
        texts = [record[data.field] for record in batch]
        ids = _encode(encoder, texts)
        stream = np.concatenate([rest, *(np.asarray([*row, end], dtype=np.int64) for row in ids)])
        rows = len(stream) // window
        rest = stream[rows * window :]
        taken = stream[: rows * window]
        yield Chunk(taken, np.ones(len(taken), np.uint8), np.full(rows, window), np.zeros(rows, dtype=np.int64))


def paired_chunk(encoder: Any, rows: list[Text], longest: int) -> Chunk:
    """Rows of (prompt, [(text before an answer, answer), ...]); what exceeds `longest` tokens is cut off pair by pair.

    A row that has no room for its first answer is left out. Parts are tokenised one by one: an answer begins where
    the model begins to generate.
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
    return Chunk(
        np.asarray(tokens, dtype=np.int64),
        np.asarray(flags, dtype=np.uint8),
        np.asarray(lengths, dtype=np.int64),
        np.asarray(prompts, dtype=np.int64),
    )


def _encode(encoder: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, no special tokens; a fast tokenizer's own call spares half of the time."""
    fast = getattr(encoder, "backend_tokenizer", None)
    if fast is not None:
        return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]
    ids: list[list[int]] = encoder(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _records(data: Data) -> Iterator[dict[str, Any]]:
    """Records of the files or of the data set, each checked for the fields that training needs."""
    source: Iterable[tuple[str, Any]]
    if data.dataset is not None:
        from datasets import load_dataset

        try:
            loaded = load_dataset(data.dataset, data.subset, split=data.split)
        except Exception as error:
            raise UserError(f"data set {data.dataset!r} could not be loaded: {error}") from error
        source = ((f"{data.dataset}[{i}]", record) for i, record in enumerate(loaded))
    else:
        source = (item for path in find_files(data) for item in _read(path, data.field))
    for where, record in source:
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object with fields, got {type(record).__name__}")
        wanted = ("prompt", "completion") if "completion" in record else (data.field,)
        for name in wanted:
            if not isinstance(record.get(name), str):
                raise UserError(f"{where}: no text field {name!r}; it has {', '.join(map(str, record))}")
        yield record


def find_files(data: Data) -> list[Path]:
    """The files that `data.files` names, in a fixed order."""
    import glob

    found: list[Path] = []
    for pattern in data.files or []:
        paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not paths:
            raise UserError(f"no data: nothing matches {pattern!r}")
        found += map(Path, paths)
    return found


def _read(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield f"{path}:{number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(f"{path}:{number}: not JSON: {error}") from None
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(1000):
            for index, record in enumerate(batch.to_pylist()):
                yield f"{path}[{index}]", record
    elif path.suffix in (".txt", ".md", ".text"):
        yield str(path), {field: path.read_text(encoding="utf-8")}
    else:
        raise UserError(f"{path}: unknown kind of data file; known: .txt, .jsonl, .parquet")


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


@lru_cache(maxsize=2)
def load_tokenizer(name: str) -> Any:
    """A Hugging Face tokenizer by folder or hub id; `mini` is the one that ships with the mini checkpoints."""
    from transformers import AutoTokenizer

    if name == "mini":
        from jrt_eval.minis import TOKENIZER

        name = str(TOKENIZER)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {name!r} could not be loaded: {str(error).splitlines()[0]}") from error


def tokenizer_folder(name: str | None) -> Path | None:
    """Where the tokenizer's files stand, to go with a checkpoint; None for hub ids, which a user names again."""
    if name == "mini":
        from jrt_eval.minis import TOKENIZER

        return TOKENIZER
    return Path(name) if name is not None and Path(name).is_dir() else None


def _stamps(data: Data) -> list[tuple[str, int, int]]:
    return [(str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in find_files(data)]


def _fingerprint(tokenizer: str | None) -> str | None:
    folder = tokenizer_folder(tokenizer)
    if folder is None:
        return tokenizer
    content = b"".join(
        p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith(("tokenizer", "vocab", "merges"))
    )
    return hashlib.sha256(content).hexdigest()


def _describe(data: Data) -> str:
    return repr(data.synthetic.name if data.synthetic else data.dataset or data.files)
