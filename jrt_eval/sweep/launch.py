"""`python -m jrt_eval.sweep.launch PARENT COMMAND...`: run COMMAND, and end it when the process PARENT dies.

A sweep that is killed with `kill -9` cannot end its jobs itself. On Linux the kernel does, through a signal that is requested here and
survives the exec. On other systems the next sweep in the folder ends what is left.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
