"""The token cache: written once, and again if it is damaged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jrt_eval.data.cache import open_rows
from jrt_eval.data.config import Data, Synthetic

DATA = Data(lengths=[40], synthetic=Synthetic("mqar", 30, options={"length": 25, "pairs": 3, "vocabulary": 56}))


def _cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def _offsets(change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        offsets = np.load(folder / "offsets.npy")
        change(offsets)
        np.save(folder / "offsets.npy", offsets)

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    **{f"{name} cut": _cut(name) for name in ("tokens.bin", "flags.bin", "offsets.npy", "prompts.npy", "meta.json")},
    **{f"no {name}": lambda f, name=name: (f / name).unlink() for name in ("tokens.bin", "offsets.npy", "meta.json")},
    "empty meta.json": lambda folder: (folder / "meta.json").write_text("") and None,
    "a list in meta.json": lambda folder: (folder / "meta.json").write_text("[1]") and None,
    "another dtype": lambda folder: (folder / "meta.json").write_text('{"dtype": "object", "largest": 1}') and None,
    "offsets out of order": _offsets(lambda offsets: offsets.__setitem__(1, 10**6)),
    "offsets that begin late": _offsets(lambda offsets: offsets.__setitem__(0, 3)),
    "prompts longer than rows": lambda folder: np.save(folder / "prompts.npy", np.full(30, 99)),
    "too few prompts": lambda folder: np.save(folder / "prompts.npy", np.zeros(3, int)),
    "pickled offsets": lambda folder: np.save(folder / "offsets.npy", np.array([{}]), allow_pickle=True),
}


def _folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_rows_are_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    whole = open_rows(DATA, None, tmp_path)
    tokens, flags = whole.tokens.tolist(), whole.flags.tolist()
    del whole
    DAMAGE[kind](_folder(tmp_path))
    with caplog.at_level(logging.WARNING):
        again = open_rows(DATA, None, tmp_path)
    (record,) = caplog.records
    assert "they are damaged" in record.getMessage()
    assert (again.tokens.tolist(), again.flags.tolist(), len(again)) == (tokens, flags, 30)


def test_rows_are_written_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_rows(DATA, None, tmp_path)
        before = (_folder(tmp_path) / "meta.json").stat().st_mtime_ns
        rows = open_rows(DATA, None, tmp_path)
    assert (_folder(tmp_path) / "meta.json").stat().st_mtime_ns == before
    assert not caplog.records
    assert rows.largest == int(rows.tokens.max()) < 56
    assert isinstance(rows.tokens, np.memmap)


def test_a_killed_writer_leaves_no_rows(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from jrt_eval.data import cache, synthetic
from jrt_eval.data.config import Data, Synthetic
whole = synthetic.synthetic_chunks
def cut(*given):
    yield next(whole(*given))
    os.kill(os.getpid(), signal.SIGKILL)
cache.synthetic_chunks = cut
cache.open_rows(Data([40], synthetic=Synthetic("mqar", 30, options={"length": 25, "pairs": 3, "vocabulary": 56})), None, Path(sys.argv[1]))
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert not any((path / "meta.json").exists() for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert len(open_rows(DATA, None, tmp_path)) == 30


def test_large_tokens_take_four_bytes(tmp_path: Path) -> None:
    options = {"length": 12, "pairs": 3, "vocabulary": 200_000}
    rows = open_rows(Data(lengths=[40], synthetic=Synthetic("mqar", 3000, options=options)), None, tmp_path)
    assert rows.tokens.dtype == np.uint32
    assert rows.largest == int(rows.tokens.max()) > np.iinfo(np.uint16).max
    assert json.loads((_folder(tmp_path) / "meta.json").read_text())["dtype"] == "uint32"
