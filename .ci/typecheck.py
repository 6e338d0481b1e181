"""Type-checks the package in its installed layout."""

from __future__ import annotations

import subprocess
import sys

from installed_layout import ROOT, installed_layout


def main() -> int:
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    with installed_layout() as folder:
        return subprocess.call([sys.executable, "-m", "mypy", *options, "jrt_eval"], cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
