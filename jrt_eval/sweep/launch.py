"""`python -m jrt_eval.sweep.launch PARENT COMMAND...`: become COMMAND, and die with the process that started us.

A sweep that is killed with -9 cannot clean up; on Linux the kernel does it, by the signal asked for here, which
outlasts the exec. Elsewhere the next sweep on the folder finds and ends what is left.
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
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
