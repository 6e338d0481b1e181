"""Type-checks the package as it is installed: tasks/ and model_adapters/ are parts of jrt_eval only there.

Lays the installed layout out in a temporary folder with links to the sources, and runs mypy on it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "jrt_eval"
        package.mkdir()
        for source in (ROOT / "jrt_eval").iterdir():
            (package / source.name).symlink_to(source)
        (package / "model_adapters").symlink_to(ROOT / "model_adapters")
        options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
        return subprocess.call([sys.executable, "-m", "mypy", *options, "jrt_eval"], cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
