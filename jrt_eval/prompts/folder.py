"""Where the YAML tasks are."""

from __future__ import annotations

from pathlib import Path


def task_folder() -> Path:
    """The folder of our YAML tasks: inside the installed package, or at the root of the checkout that it runs from."""
    package = Path(__file__).parents[1]
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"
