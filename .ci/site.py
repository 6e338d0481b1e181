"""Builds the documentation site into site/: every page and link checked (mkdocs --strict), the API from the docstrings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from installed_layout import ROOT, installed_layout

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*", "tasks/**/*.md", "results/**/*.*"]


def main() -> int:
    with installed_layout() as folder:
        (folder / "jrt_eval").rename(folder / "in-package")
        (folder / "package").mkdir()
        (folder / "in-package").rename(folder / "package" / "jrt_eval")
        for pattern in PAGES:
            for source in filter(Path.is_file, ROOT.glob(pattern)):
                page = folder / "pages" / source.relative_to(ROOT)
                page.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, page)
        shutil.copyfile(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(ROOT / "site")]
        return subprocess.call(command, cwd=folder, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


if __name__ == "__main__":
    sys.exit(main())
