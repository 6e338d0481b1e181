"""Reach into and change the result files that the tests copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def result_file(runs: Path, model: str = "acme__reader-small") -> Path:
    return next((runs / model).glob("results_*.json"))


def sample_file(runs: Path, task: str, model: str = "acme__reader-small") -> Path:
    return next((runs / model).glob(f"samples_{task}_2*.jsonl"))


def edit(path: Path, **changes: Any) -> None:
    """Change top-level keys of a result file, or keys of its config (`config__key`)."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        where, _, inner = key.partition("__")
        if inner:
            data[where][inner] = value
        else:
            data[key] = value
    path.write_text(json.dumps(data), encoding="utf-8")


def rerun(runs: Path, model: str = "acme__reader-small", seconds: float = 3600, **changes: Any) -> Path:
    """The same run once more, `seconds` later: a copy of its files under another date."""
    old = result_file(runs, model)
    date = old.stem.removeprefix("results_")
    new = "2030" + date[4:]
    for path in list(old.parent.iterdir()):
        if date in path.name:
            shutil.copy(path, path.with_name(path.name.replace(date, new)))
    path = old.with_name(old.name.replace(date, new))
    edit(path, date=json.loads(old.read_text(encoding="utf-8"))["date"] + seconds, **changes)
    return path
