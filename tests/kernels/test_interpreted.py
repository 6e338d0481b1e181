"""Triton's kernels of the recurrent operators, thread by thread on the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("script", "lines"), [("interpreted_recurrences.py", 12), ("interpreted_gated.py", 8)])
def test_kernels_in_the_interpreter(script: str, lines: int) -> None:
    pytest.importorskip("triton")
    folder = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, str(folder / script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == lines
