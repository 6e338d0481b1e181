"""Rows of tokens, memory-mapped from files.

A row is a sequence of tokens with a flag for each token (0: the token belongs to no answer; otherwise its loss weight,
usually 1) and the length of its prompt (0: it has none).

On disk a set of rows is a folder with `tokens.bin` (uint16, or uint32 for large vocabularies), `flags.bin` (uint8),
`offsets.npy` (rows + 1), `prompts.npy` (rows) and `meta.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jrt_eval.files import new_folder

FORMAT = 2
IGNORED_LABEL = -100  # the label of positions without loss; PyTorch's cross_entropy skips it

Ints = npt.NDArray[Any]


class DamagedRows(ValueError):
    """A folder of rows is incomplete or inconsistent."""


@dataclass(frozen=True)
class RowChunk:
    """Some rows, concatenated: tokens and flags (n,), lengths and prompt lengths (rows,)."""

    tokens: Ints
    flags: Ints
    lengths: Ints
    prompts: Ints


@dataclass(frozen=True)
class TokenRows:
    """All rows of a source: tokens and flags (n,), offsets (rows + 1,), prompt lengths (rows,), the largest token."""

    tokens: Ints
    flags: Ints
    offsets: Ints
    prompts: Ints
    largest: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[Ints, Ints, int]:
        """tokens (n,), flags (n,), prompt length."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.tokens[start:end], self.flags[start:end], int(self.prompts[index])


def write_rows(folder: Path, chunks: Iterable[RowChunk], identity: dict[str, Any]) -> None:
    """Write rows to `folder`, which appears when all are written. `identity` is kept in meta.json, for people."""
    with new_folder(folder) as temporary:
        largest, lengths, prompts = 0, [], []
        dtype: np.dtype[Any] = np.dtype(np.uint16)
        with (temporary / "tokens.bin").open("wb") as tokens, (temporary / "flags.bin").open("wb") as flags:
            for chunk in chunks:
                largest = max(largest, int(chunk.tokens.max(initial=0)))
                if largest > np.iinfo(dtype).max:
                    dtype = np.dtype(np.uint32)
                    tokens.flush()
                    written = np.fromfile(temporary / "tokens.bin", dtype=np.uint16)
                    tokens.seek(0)
                    tokens.write(written.astype(dtype).tobytes())
                tokens.write(chunk.tokens.astype(dtype).tobytes())
                flags.write(chunk.flags.astype(np.uint8).tobytes())
                lengths.append(chunk.lengths)
                prompts.append(chunk.prompts)
        none = np.zeros(0, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([none, *lengths]))]).astype(np.int64)
        np.save(temporary / "offsets.npy", offsets)
        np.save(temporary / "prompts.npy", np.concatenate([none, *prompts]).astype(np.int32))
        meta = {"dtype": dtype.name, "largest": largest, "identity": identity}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))


def read_rows(folder: Path) -> TokenRows:
    """Open the rows in `folder`. Raises `DamagedRows` if files are missing, unreadable or of the wrong size."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        dtype, largest = np.dtype(meta["dtype"]), int(meta["largest"])
        offsets, prompts = np.load(folder / "offsets.npy"), np.load(folder / "prompts.npy")
        sizes = [(folder / name).stat().st_size for name in ("tokens.bin", "flags.bin")]
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DamagedRows(f"{type(error).__name__}: {error}") from None
    total = int(offsets[-1]) if offsets.ndim == 1 and len(offsets) else -1
    if (
        dtype not in (np.uint16, np.uint32)
        or total < 0
        or sizes != [total * dtype.itemsize, total]
        or offsets[0] != 0
        or prompts.shape != (len(offsets) - 1,)
        or (np.diff(offsets) < np.maximum(prompts, 0)).any()
    ):
        raise DamagedRows("its files do not fit together")
    if not total:
        return TokenRows(np.zeros(0, dtype), np.zeros(0, np.uint8), offsets, prompts)
    return TokenRows(
        tokens=np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"),
        flags=np.memmap(folder / "flags.bin", dtype=np.uint8, mode="r"),
        offsets=offsets,
        prompts=prompts,
        largest=largest,
    )
