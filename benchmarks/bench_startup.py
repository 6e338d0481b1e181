"""The cost of the start-up hook for every interpreter of the environment.

    python benchmarks/bench_startup.py [--rounds 200]

Makes two empty virtual environments, puts the hook's two files into one of them, and starts both interpreters in turn.
Prints the median start of each, their difference, and the hook's own import time as `-X importtime` sees it.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HOOK = [Path(__file__).parents[1] / name for name in ("jrt_eval_autoload.py", "jrt_eval_autoload.pth")]


def make_environment(folder: Path, files: list[Path]) -> Path:
    """An empty virtual environment with `files` in its site-packages; returns its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for file in files:
        shutil.copy(file, site_packages)
    compileall.compile_dir(site_packages, quiet=1)  # as pip does when it installs
    return folder / "bin" / "python"


def start(python: Path) -> float:
    """Milliseconds of one bare interpreter start."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return (time.perf_counter() - begin) * 1e3


def hook_import(python: Path) -> float:
    """Milliseconds that the hook's module took to import in a fresh interpreter."""
    run = subprocess.run([python, "-X", "importtime", "-c", "pass"], check=True, capture_output=True, text=True)
    (line,) = (line for line in run.stderr.splitlines() if line.endswith("jrt_eval_autoload"))
    return int(line.split("|")[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="starts of each interpreter (default: 200)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bare = make_environment(Path(folder) / "bare", [])
        hooked = make_environment(Path(folder) / "hooked", HOOK)
        for python in (bare, hooked):  # warms the file cache
            start(python)
        pairs = [(start(bare), start(hooked)) for _ in range(rounds)]
        own = statistics.median(hook_import(hooked) for _ in range(max(1, rounds // 10)))
    without, with_hook = (statistics.median(times) for times in zip(*pairs, strict=True))
    extra = statistics.median(b - a for a, b in pairs)
    print(f"python {sys.version.split()[0]}, {rounds} starts each, medians")
    print(f"bare start            {without:7.2f} ms")
    print(f"start with the hook   {with_hook:7.2f} ms")
    print(f"difference            {extra:7.2f} ms (median of the pairs)")
    print(f"the hook's own import {own:7.2f} ms (-X importtime)")


if __name__ == "__main__":
    main()
