"""Somebody's console in a copy of the project: commands are typed in a terminal, or their output goes into a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

COLUMNS, LINES = 80, 24
END_TIMEOUT_S = 60.0
"""For a fleet to drain."""


class Console:
    """A folder, an environment, and what runs there. A context manager."""

    def __init__(self, folder: Path, *, is_terminal: bool) -> None:
        self.folder, self._is_terminal = folder, is_terminal
        scripts = str(Path(sys.executable).parent)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        self.environment = {**kept, "PATH": f"{scripts}:{os.environ['PATH']}", "TERM": "xterm"}
        self.shown = ""
        """What all commands so far have shown."""
        self._servers: list[tuple[str, subprocess.Popen[bytes], int]] = []

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_error: object) -> None:
        for _text, process, master in self._servers:
            process.kill()
            process.wait()
            os.close(master)

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        """Type a command; its exit status, and what it showed. Raises TimeoutError with that."""
        process, reader = self._start(command)
        deadline_s, shown = time.monotonic() + timeout_s, b""
        try:
            while chunk := _read(reader, deadline_s):
                shown += chunk
            self.shown += shown.decode(errors="replace")
            return process.wait(max(0.1, deadline_s - time.monotonic())), shown.decode(errors="replace")
        except (TimeoutError, subprocess.TimeoutExpired):
            raise TimeoutError(f"{command}\nshowed within {timeout_s:g} s: {shown.decode(errors='replace')}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(reader)

    def serve(self, command: str, ready: str, count: int, timeout_s: float) -> None:
        """Start what stays, and return when it has shown so many times that something serves."""
        process, reader = self._start(command)
        self._servers.append((command, process, reader))
        deadline_s, shown = time.monotonic() + timeout_s, b""
        try:
            while shown.count(ready.encode()) < count:
                chunk = _read(reader, deadline_s)
                assert chunk, f"{command} ended with {process.wait()}: {shown.decode(errors='replace')}"
                shown += chunk
        except TimeoutError:
            raise TimeoutError(f"{command}\nshowed within {timeout_s:g} s: {shown.decode(errors='replace')}") from None

    def end_servers(self, is_meant: Callable[[str], bool] = lambda _command: True) -> list[tuple[str, int]]:
        """Ctrl-C to what stays and is meant, the newest first; each with its exit status."""
        ended = []
        chosen = [server for server in reversed(self._servers) if is_meant(server[0])]
        for command, process, reader in chosen:
            os.kill(process.pid, signal.SIGINT if command.startswith("triptych") else signal.SIGTERM)
            deadline_s = time.monotonic() + END_TIMEOUT_S
            while _read(reader, deadline_s):
                pass
            ended.append((command, process.wait(END_TIMEOUT_S)))
            os.close(reader)
        self._servers = [server for server in self._servers if server not in chosen]
        return ended

    def _start(self, command: str) -> tuple[subprocess.Popen[bytes], int]:
        reader, writer = pty.openpty() if self._is_terminal else os.pipe()
        if self._is_terminal:
            termios.tcsetwinsize(writer, (LINES, COLUMNS))
        takes = writer if self._is_terminal else subprocess.DEVNULL
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}" if self._is_simple(command) else command],
            cwd=self.folder,
            env=self.environment,
            stdin=takes,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
            preexec_fn=_own_terminal if self._is_terminal else None,
        )
        os.close(writer)
        return process, reader

    @staticmethod
    def _is_simple(command: str) -> bool:
        """Whether the shell may become the command, so that signals reach it."""
        return command.startswith(("triptych ", "python "))


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(reader: int, deadline_s: float) -> bytes:
    """Some of what is shown; nothing at its end. Raises TimeoutError."""
    ready, _, _ = select.select([reader], [], [], max(0.0, deadline_s - time.monotonic()))
    if not ready:
        raise TimeoutError
    try:
        return os.read(reader, 1 << 16)
    except OSError:  # a terminal whose last program has ended
        return b""
