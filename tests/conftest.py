"""The watchdog on event loops, in every suite: no call holds one for longer than `HOLD_MAX_S` of CPU time."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from triptych.telemetry.loop_watch import WatchedLoop

HOLDS = Path(tempfile.gettempdir()) / f"triptych-holds-{os.getpid()}"
"""Where the services that tests start say what held their loops."""
SHOWN = 5
_longest: list[tuple[float, str]] = []
"""Seconds of CPU, and what is said of it."""

_loops: list[WatchedLoop] = []


def watched_loop() -> WatchedLoop:
    """Tests' loops are watched as the services' are."""
    _loops.append(WatchedLoop())
    return _loops[-1]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"watched": watched_loop}


@pytest.fixture(autouse=True)
def loop_watch(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call to a server in the test's own process that holds the loop fails the test; what tests do themselves
    doesn't, and copies of messages of tens of megabytes don't (marker `large_messages`)."""
    yield
    is_emulated = request.path.is_relative_to(Path(__file__).parent / "rdma")  # a processor of another speed
    for loop in _loops:
        longest = loop.watch.longest
        _longest.append((longest.cpu_s, f"in {request.node.nodeid}: {longest}"))
        is_let_off = is_emulated or request.node.get_closest_marker("large_messages") is not None
        calls = [] if is_let_off else [str(hold) for hold in loop.watch.too_long if hold.what.startswith("/triptych.")]
        loop.watch.too_long.clear()
        assert not calls, f"the event loop was held: {calls}"
    _loops[:] = [loop for loop in _loops if not loop.is_closed()]
    _longest.sort(reverse=True)
    del _longest[SHOWN:]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_mooncake") is not None and (reason := needs.without_mooncake()):
        needs.skip(reason)


def pytest_configure() -> None:
    os.environ.setdefault("TRIPTYCH_HOLD_FILE", str(HOLDS))
    os.environ.pop("PYTHONUNBUFFERED", None)  # users don't set it, and it hides what a buffered stdout does


def pytest_sessionfinish(session: pytest.Session) -> None:
    if output := getattr(session.config, "workeroutput", None):  # one of several processes that run tests
        output["longest"] = _longest


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what such a process told; nothing, if it crashed."""
    _longest.extend((seconds, line) for seconds, line in getattr(node, "workeroutput", {}).get("longest", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what held event loops longest."""
    terminalreporter.section("event loops' longest holds")
    for _, line in sorted(_longest, reverse=True)[:SHOWN]:
        terminalreporter.write_line(line)
    if HOLDS.exists():
        lines = sorted(HOLDS.read_text().splitlines(), key=lambda line: -float(line.split()[0]))
        for line in lines[:SHOWN]:
            terminalreporter.write_line(f"in a service: {line}")
        HOLDS.unlink()
