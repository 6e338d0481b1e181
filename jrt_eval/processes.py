"""Python child processes that never import from the current folder.

`python -m` and `python -c` put the current folder first on `sys.path`: started inside a stranger's folder, they would run that folder's
`ctypes.py`, or its `lm_eval/` in place of the installed package. Every Python process that jrt-eval starts gets its command and its
environment here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

# For Python 3.10, which has neither `-P` nor PYTHONSAFEPATH. `sys` is built in, so that this import runs no file.
_WITHOUT_FLAG = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; sys.argv[:] = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
_HAS_FLAG = sys.version_info >= (3, 11)


def python_module(name: str, *arguments: str) -> list[str]:
    """The command of `python -m NAME ARGUMENTS`, without the current folder on `sys.path`."""
    if _HAS_FLAG:
        return [sys.executable, "-P", "-m", name, *arguments]
    return [sys.executable, "-c", _WITHOUT_FLAG, name, *arguments]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with `changes`, and with PYTHONSAFEPATH, which also reaches the children of the child."""
    return {**os.environ, "PYTHONSAFEPATH": "1", **(changes or {})}


@contextmanager
def safe_multiprocessing() -> Iterator[None]:
    """Processes that multiprocessing spawns inside this block do not import from the current folder.

    Keep the block open for as long as the pool lives, since a pool replaces workers that died. Not for use in several threads at once.
    """
    if _HAS_FLAG:
        with patch.dict(os.environ, PYTHONSAFEPATH="1"):
            yield
        return
    # Python 3.10: isolated mode. What it drops (PYTHONPATH, the user's site-packages) multiprocessing restores from our own sys.path.
    from multiprocessing import resource_tracker, spawn, util

    flags = util._args_from_interpreter_flags  # type: ignore[attr-defined]
    with patch.object(util, "_args_from_interpreter_flags", lambda: [*flags(), "-I"]):
        assert spawn.util is resource_tracker.util is util  # type: ignore[attr-defined]
        yield
