"""The arguments that the `cuda` backend passes to the compiled module, checked without a GPU in a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_kernels_are_chosen_and_called_as_the_bindings_say() -> None:
    script = Path(__file__).parent / "cuda_face.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("calls\n")
