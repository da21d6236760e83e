"""Fleets that the tests of a file share: a start takes seconds, and each test leaves its fleet as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import model_folder as model_folder
from tests.e2e.conftest import wan_fleet as wan_fleet
from tests.fleet.held import HeldFleet, restore
from triptych_client import Client

ATTEMPTS_MAX = 2
STALL_TIMEOUT_S = 6.0
"""Far over what a stage of the tiny model takes on a busy machine."""


@pytest.fixture(scope="session")
def held_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[HeldFleet]:
    """Two encoders, two transformers, one decoder, of the tiny Wan."""
    flags = ("--attempts-max", str(ATTEMPTS_MAX), "--stall-timeout-s", str(STALL_TIMEOUT_S))
    fleet = HeldFleet(
        tmp_path_factory.mktemp("held"),
        model_folder("wan_t2v"),
        counts={"encoder": 2, "transformer": 2},
        controller_flags=flags,
        worker_flags=("--mover", "local"),
    )
    with fleet:
        yield fleet


@pytest.fixture
def fleet(held_fleet: HeldFleet) -> Iterator[HeldFleet]:
    """The shared fleet, whole and idle."""
    with held_fleet.client() as client:
        restore(held_fleet, client)
    yield held_fleet
    for name in held_fleet.processes:
        held_fleet.release(name)


@pytest.fixture
def client(fleet: HeldFleet) -> Iterator[Client]:
    """A client of the shared fleet."""
    with fleet.client() as opened:
        yield opened
