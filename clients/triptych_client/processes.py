"""One supervised process: start it guarded, read its READY line, keep its log, say how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

GUARD = Path(__file__).with_name("guarded_exec.py")

READY = "READY "
"""What a process prints when it serves, followed by `host:port` (and, maybe, an address for clients)."""

LOG_BYTES_MAX = 16 * 2**20
"""A log larger than this is set aside (one generation) when its process starts again."""

LOG_TAIL_BYTES = 64 * 2**10
"""How much of a log's end is searched for a process's last words."""

_VMSTAT = Path("/proc/vmstat")
_OOM_COUNTER = "oom_kill "


@dataclass(frozen=True)
class ProcessSpec:
    """A process to keep running."""

    name: str
    """Names it in messages and its log, for example `transformer-1`."""
    argv: Sequence[str]
    """Command line."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Additions to the environment."""
    tells_end: bool = False
    """Give each start an instance id of its own, under which its end is told to the controller."""
    keeps_address: bool = False
    """Start it again with `--address` as it first announced, so that others find it again."""


class Process:
    """A running child in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_offset: int, oom_kills: int) -> None:
        self._process = process
        self._log = log
        self._log_offset = log_offset
        self._oom_kills = oom_kills
        self.pid = process.pid

    @classmethod
    async def start(cls, spec: ProcessSpec, log: Path, argv: Sequence[str]) -> Process:
        """Start `argv` with stderr appended to `log`.

        The child dies with the calling thread. Its own group keeps the terminal's Ctrl-C from it.
        """
        env = [f"{name}={value}" for name, value in spec.env.items()]
        command = (sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *env, "--", *argv)
        oom_kills = _oom_kills()
        with _open_log(log) as file:
            offset = file.tell()
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                process_group=0,
            )
        return cls(process, log, offset, oom_kills)

    async def ready(self) -> str:
        """Return the address that the process announces; empty when it ends without."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode(errors="replace").strip()
            if text.startswith(READY):
                return text.removeprefix(READY).split()[0]
        return ""

    async def wait(self) -> int:
        """Return the exit code, negative for a signal. What it prints meanwhile is dropped."""
        assert self._process.stdout is not None
        async for _line in self._process.stdout:
            pass
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask it to drain."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def last_words(self) -> str:
        """The sentence with which it ended."""
        return last_words(self._log, self._log_offset)

    def ending(self, code: int) -> str:
        """How it ended, by its exit code: `exit code 1`, `signal 9 (SIGKILL)`."""
        if code >= 0:
            return f"exit code {code}"
        try:
            name = f" ({signal.Signals(-code).name})"
        except ValueError:  # a real-time signal
            name = ""
        is_likely = -code == signal.SIGKILL and _oom_kills() > self._oom_kills
        return f"signal {-code}{name}" + (
            ": the kernel has killed a process because memory ran out" if is_likely else ""
        )

    def kill(self) -> None:
        """End it, and all processes that it started, immediately."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def last_words(log: Path, offset: int = 0) -> str:
    """The sentence with which a process that began to log at `offset` ended; empty where there is none.

    That is its last line after `error: `, or else its last line that is no JSON record, or a native library's.
    """
    spoken = [words for line in _last_lines(log, offset) if (words := _message(line, of="native"))]
    errors = [line.removeprefix("error: ") for line in spoken if line.startswith("error: ")]
    return (errors or spoken or [""])[-1]


def last_message(log: Path, offset: int = 0) -> str:
    """The message of the last record, or the last line where that is no record; empty where there is none."""
    return next(filter(None, map(_message, reversed(_last_lines(log, offset)))), "")


def _last_lines(log: Path, offset: int) -> list[str]:
    """The end of a log, from `offset` on where the log reaches so far."""
    try:
        with log.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(size_bytes - LOG_TAIL_BYTES, offset if offset <= size_bytes else 0))
            return [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return []


def _message(line: str, of: str = "") -> str:
    """A line, or the message where it is a JSON record (of the logger `of`, where that is given)."""
    if not line.startswith("{"):
        return line
    with contextlib.suppress(ValueError):  # half of one
        record = json.loads(line)
        return str(record.get("message", "")) if of in ("", record.get("logger")) else ""
    return ""


def _oom_kills() -> int:
    """How many processes this machine's kernel has killed because memory ran out, in a container or in all; 0 where it
    doesn't say."""
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            if line.startswith(_OOM_COUNTER):
                return int(line.removeprefix(_OOM_COUNTER))
    return 0


def _open_log(log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".1.log"))
    return log.open("ab")
