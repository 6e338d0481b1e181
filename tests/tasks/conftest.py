"""Loading our tasks as lm-eval does, without indexing the thousands that it ships."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.plugin import task_folder

sys.path.insert(0, str(Path(__file__).parent))  # helper modules


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """`load("jrt_swde", data_dir=..., tokenizer=...)`: the task that TaskManager makes with these metadata."""
    from lm_eval.tasks import TaskManager

    def load_task(name: str, *, include: Path | None = None, **metadata: Any) -> Any:
        folders = [str(task_folder()), *([str(include)] if include else [])]
        manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
        return manager.load([name])["tasks"][name]

    return load_task


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write("based_drop", rows)`: a data_dir with that data set; rows are objects, or lines as they are."""

    def write_rows(dataset: str, rows: list[Any]) -> str:
        folder = tmp_path / "data" / dataset
        folder.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(tmp_path / "data")

    return write_rows
