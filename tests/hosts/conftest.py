"""Hosts for the whole run, and what the tests measured, printed at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests import needs
from tests.chaos import network
from tests.hosts.hosts import Hosts

_measured: list[str] = []


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Made once, and gone with this process's namespaces."""
    if reason := network.reason_against():
        needs.skip(reason)
    if not network.is_inside():
        needs.skip("hosts are made in namespaces of the run's own: `make test-hosts`, or `python -m tests.hosts`")
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    asyncio.run(made.open())
    yield made
    assert not asyncio.run(made.close())


@pytest.fixture
def measured() -> list[str]:
    """Lines to print at the end of the run."""
    return _measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    if _measured:
        terminalreporter.section("bytes on the wire, and the hand-off's share of a job")
        for line in _measured:
            terminalreporter.write_line(line)
