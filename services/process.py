"""What every service process does around its work: exit codes, the READY line, signals.

Exit codes: 0 after a drain, 1 when the process can't go on, 2 when a new start would end the same way: bad
configuration, a model that can't be loaded, files that can't be read or written at the start. Every failure ends with
one sentence on stderr, after `error: `; an unexpected one also leaves its traceback in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych import addresses, telemetry
from triptych.config import ProcessConfig
from triptych.errors import (
    EXIT_CONFIGURATION,
    EXIT_FAILED,
    InvalidRequest,
    MissingExtra,
    ModelInvalid,
    NotAllowed,
    TriptychError,
    Unauthenticated,
    WrongState,
    system_text,
)
from triptych.security import auth
from triptych.telemetry.loop_watch import WatchedLoop, watch_of

log = logging.getLogger(__name__)

LASTING_ERRORS = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV),
)
"""The system's errors at a start that the next start would meet, too. A full disk, say, may have space then."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's `main` and exit with the code that fits.

    It leaves out the interpreter's own end, which takes a second of CPU with torch loaded and waits for a stage that
    hangs: by then everything is closed and flushed.
    """
    code = 0
    watch = None
    try:
        with asyncio.Runner(loop_factory=WatchedLoop) as runner:
            watch = watch_of(runner.get_loop())
            watch.is_starting = True
            runner.run(main())
    except* Exception as group:  # noqa: BLE001  (the process's edge: its starter is told of any error)
        is_starting = watch is None or watch.is_starting
        codes = {_tell(error, is_starting=is_starting) for error in _leaves(group)}
        code = EXIT_CONFIGURATION if codes == {EXIT_CONFIGURATION} else EXIT_FAILED
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


REFUSALS = (InvalidRequest, ModelInvalid, MissingExtra, WrongState, Unauthenticated, NotAllowed)
"""Errors that a new start would meet, too."""


def _tell(error: BaseException, *, is_starting: bool) -> int:
    """Say in one sentence what ended the process; the exit code that it calls for."""
    if isinstance(error, TriptychError):
        sentence = str(error)
    elif isinstance(error, OSError):
        sentence = system_text(error)
    else:
        log.error("unexpected", exc_info=error)
        said = f": {error}" if is_starting else ""  # later it might quote a request
        sentence = f"{type(error).__name__}{said}"
    with contextlib.suppress(OSError):  # stderr may be closed
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    is_lasting = isinstance(error, REFUSALS) or (
        is_starting and isinstance(error, OSError) and error.errno in LASTING_ERRORS
    )
    return EXIT_CONFIGURATION if is_lasting else EXIT_FAILED


def announce(address: str, client_address: str = "") -> None:
    """Print `READY host:port`, for the starter, and the address for clients without a certificate if there is one."""
    watch_of(asyncio.get_running_loop()).is_starting = False
    with contextlib.suppress(OSError):  # its starter may have gone; those who know the address go on
        print(f"READY {address} {client_address}".rstrip(), flush=True)


def show_health(config: ProcessConfig, metrics: telemetry.Metrics) -> None:
    """Report how the process is, in metrics, and what holds the running event loop, also in the file that the settings
    name."""
    watch = watch_of(asyncio.get_running_loop())
    watch.file = Path(config.hold_file) if config.hold_file else None
    metrics.watch_loop(lambda: watch.longest.cpu_s)
    metrics.watch_process()


def open_security(config: ProcessConfig, token_file: str = "") -> auth.Security:
    """The security that the settings ask for, with a warning where that is none. Raises InvalidRequest."""
    security = auth.open_security(config.tls, config.tokens, token_file)
    is_private = addresses.is_loopback(addresses.parse("address", config.address, to_serve=True).host)
    if security.is_open and not is_private:
        log.warning("anybody who reaches %s may call: set tls, tokens or both (SECURITY.md)", config.address)
    elif security.certificates is None and not is_private:
        log.warning("tokens come to %s in the clear, unless a mesh encrypts them (SECURITY.md)", config.address)
    return security


@dataclass(frozen=True)
class Stop:
    """What signals have told a process."""

    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """It says NOT_SERVING and goes on serving: those who balance its callers look away in that time."""
    now: asyncio.Event = field(default_factory=asyncio.Event)
    """It drains."""


def on_signals(lame_duck_s: float) -> Stop:
    """What SIGTERM, SIGINT and the end of the terminal tell the process from now on.

    SIGTERM lets it leave first, for `lame_duck_s`. A person at a terminal doesn't wait for that, nor does who sends
    SIGTERM twice.
    """
    stop, loop = Stop(), asyncio.get_running_loop()

    def at_once() -> None:
        stop.leaving.set()
        stop.now.set()

    def leave() -> None:
        if lame_duck_s == 0 or stop.leaving.is_set():
            at_once()
        else:
            log.info("leaving: NOT_SERVING for %g s before the drain", lame_duck_s)
            stop.leaving.set()
            loop.call_later(lame_duck_s, stop.now.set)

    loop.add_signal_handler(signal.SIGTERM, leave)
    for number in (signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, at_once)
    return stop


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
