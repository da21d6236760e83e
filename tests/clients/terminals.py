"""Commands in a real terminal: a pseudo-terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.clients.test_cli import CLI, ENV, TIMEOUT_S

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
"""What rich sends: styles and movements of the cursor."""


class Shown(NamedTuple):
    """What a command left on its terminal."""

    code: int
    raw: bytes
    """As it was sent."""

    @property
    def text(self) -> str:
        """Without styles and movements."""
        return CONTROL.sub(b"", self.raw).decode(errors="replace").replace("\r\n", "\n")


def in_terminal(*args: str | Path, columns: int = 80, env: Mapping[str, str] | None = None) -> Shown:
    """Run `triptych args` in a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    whole = {name: value for name, value in ENV.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    whole |= {"TERM": "xterm-256color", **(env or {})}
    command = (*CLI, *map(str, args))
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=whole, start_new_session=True) as process:
        os.close(its)
        pieces = []
        while piece := _read(ours):
            pieces.append(piece)
        os.close(ours)
        return Shown(process.wait(TIMEOUT_S), b"".join(pieces))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)
    except OSError:  # all who had the other end are gone
        return b""
