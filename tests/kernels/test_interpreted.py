"""Triton's kernels of the recurrent operators, thread by thread on the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_recurrences_and_convolution_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).parent / "interpreted_recurrences.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12
