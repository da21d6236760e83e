"""What every service process does around its work: exit codes, the READY line, signals.

Exit codes: 0 after a drain, 1 when the process can't go on, 2 for bad configuration (one sentence on stderr).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from triptych import auth, telemetry
from triptych.config import ProcessConfig
from triptych.errors import (
    InvalidRequest,
    JournalDamaged,
    MissingExtra,
    ModelInvalid,
    NotAllowed,
    Unauthenticated,
    WorkerBroken,
    WrongState,
)
from triptych.loop_watch import WatchedLoop, watch_of

log = logging.getLogger(__name__)

EXIT_BROKEN, EXIT_CONFIGURATION = 1, 2
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Addresses that only this machine reaches."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's `main` and exit with the code that fits.

    By then everything is closed and flushed, so the interpreter's own end, a second of CPU with torch loaded, is
    left out; it would also wait for a stage that hangs.
    """
    code = 0
    try:
        with asyncio.Runner(loop_factory=WatchedLoop) as runner:
            watch_of(runner.get_loop()).is_starting = True
            runner.run(main())
    except* (WorkerBroken, JournalDamaged) as group:
        for error in _leaves(group):
            _say(error)
        code = EXIT_BROKEN
    except* (InvalidRequest, ModelInvalid, MissingExtra, WrongState, Unauthenticated, NotAllowed) as group:
        for error in _leaves(group):
            _say(error)
        code = EXIT_CONFIGURATION
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _say(error: BaseException) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"error: {error}", file=sys.stderr)


def announce(address: str, client_address: str = "") -> None:
    """Tell whoever started this process that it serves, and where: the line `READY host:port` on stdout.

    The address for clients without a certificate follows, where there is one.
    """
    watch_of(asyncio.get_running_loop()).is_starting = False
    with contextlib.suppress(OSError):  # whoever started it has gone: those who know the address go on
        print(f"READY {address} {client_address}".rstrip(), flush=True)


def show_holds(config: ProcessConfig, metrics: telemetry.Metrics) -> None:
    """Tell of what holds the running event loop: a metric, and the file that the settings name."""
    watch = watch_of(asyncio.get_running_loop())
    watch.file = Path(config.hold_file) if config.hold_file else None
    metrics.watch_loop(lambda: watch.longest.cpu_s)


def open_security(config: ProcessConfig, token_file: str = "") -> auth.Security:
    """What the settings ask of callers, with a warning where that is nothing. Raises InvalidRequest."""
    security = auth.open_security(config.tls, config.tokens, token_file)
    host = config.address.rpartition(":")[0]
    if security.is_open and host not in LOOPBACK_HOSTS:
        log.warning("anybody who reaches %s may call: set tls, tokens or both (SECURITY.md)", config.address)
    elif security.certificates is None and host not in LOOPBACK_HOSTS:
        log.warning("tokens come to %s in the clear, unless a mesh encrypts them (SECURITY.md)", config.address)
    return security


def stop_event() -> asyncio.Event:
    """An event that SIGTERM, SIGINT and a terminal's end set, however often they come."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
