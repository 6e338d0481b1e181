"""The package as it is installed: tasks/ and model_adapters/ are parts of jrt_eval only there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def installed_layout() -> Iterator[Path]:
    """A temporary folder with the installed layout of jrt_eval, made of links to the sources."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "jrt_eval"
        package.mkdir()
        for source in (ROOT / "jrt_eval").iterdir():
            (package / source.name).symlink_to(source)
        (package / "model_adapters").symlink_to(ROOT / "model_adapters")
        yield Path(folder)
