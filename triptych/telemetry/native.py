"""What native libraries write to standard error by themselves (Mooncake, gRPC's core, CUDA) becomes log records.

They write to file descriptor 2. From `capture` on that is a pipe into `native_lines.py`, while this process's own
logs, and `sys.stderr`, go where descriptor 2 went before.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

_PROGRAM = Path(__file__).with_name("native_lines.py")
_STDERR = 2


def capture(service: str) -> TextIO:
    """Begin, once in a process and before native libraries are loaded; returns the stream for logs.

    Where no process can be started, or there is no standard error, everything stays as it is.
    """
    try:
        own = os.dup(_STDERR)
    except OSError:
        return sys.stderr
    try:
        program = subprocess.Popen(
            (sys.executable, "-I", "-S", str(_PROGRAM), service), stdin=subprocess.PIPE, stdout=own, stderr=own
        )
    except OSError:
        os.close(own)
        return sys.stderr
    assert program.stdin is not None
    sys.stderr.flush()
    os.dup2(program.stdin.fileno(), _STDERR)
    program.stdin.close()  # descriptor 2 is the only writer now: when this process ends, so does the program
    program.returncode = 0  # nobody waits for it: it ends after this process
    raw = os.fdopen(own, "wb", buffering=0)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
    return sys.stderr
