"""Checks that imports go from higher layers to lower ones (`[tool.importlinter]` in pyproject.toml)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from installed_layout import ROOT, installed_layout


def main() -> int:
    lint = Path(sys.executable).with_name("lint-imports")
    with installed_layout() as folder:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return subprocess.call([lint, ROOT / "pyproject.toml", "--no-cache"], cwd=folder, env=environment)


if __name__ == "__main__":
    sys.exit(main())
