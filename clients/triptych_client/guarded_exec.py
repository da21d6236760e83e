"""Run a command that can't outlive its parent: `python -I -S guarded_exec.py PARENT_PID NAME=VALUE… -- COMMAND…`.

A small program of its own, and not a function run between fork and exec, because the parent has threads. The kernel
kills the command when the parent's thread that started it ends, however it ends. Elsewhere than on Linux the command
runs unguarded.
"""

import ctypes
import os
import signal
import sys


def main() -> None:
    """Set the environment and the guard, then become the command."""
    parent_pid = int(sys.argv[1])
    rest = sys.argv[2:]
    split = rest.index("--")
    for assignment in rest[:split]:
        os.putenv(*assignment.split("=", 1))
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h; survives exec
        ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(1)  # the parent died before the guard was set
    command = rest[split + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
