"""Fleets that the tests of a file share: a start takes seconds, and each test leaves its fleet as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import model_folder as model_folder
from tests.e2e.conftest import wan_fleet as wan_fleet
from tests.fleet.held import HeldFleet, restore
from tests.fleet.processes import CONTROLLER, DEATH_TIMEOUT_S
from triptych_client import Client

ATTEMPTS_MAX = 2
ATTEMPTS = ("--attempts-max", str(ATTEMPTS_MAX))
STALL_TIMEOUT_S = 10.0
"""Of the tests of hanging stages. In the others stages may be held for as long as a busy machine needs."""


@pytest.fixture(scope="session")
def held_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[HeldFleet]:
    """Two encoders, two transformers, one decoder, of the tiny Wan."""
    fleet = HeldFleet(
        tmp_path_factory.mktemp("held"),
        model_folder("wan_t2v"),
        counts={"encoder": 2, "transformer": 2},
        controller_flags=ATTEMPTS,
        worker_flags=("--mover", "local"),
        worker_timeout_s=DEATH_TIMEOUT_S,
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
def impatient_fleet(fleet: HeldFleet) -> Iterator[HeldFleet]:
    """The shared fleet, with a controller that waits no longer than `STALL_TIMEOUT_S` for a step."""
    try:
        fleet.kill(CONTROLLER)
        fleet.controller_flags = (*ATTEMPTS, "--stall-timeout-s", str(STALL_TIMEOUT_S))
        fleet.start(CONTROLLER)
        yield fleet
    finally:
        fleet.kill(CONTROLLER)
        fleet.controller_flags = ATTEMPTS
        fleet.start(CONTROLLER)


@pytest.fixture
def client(fleet: HeldFleet) -> Iterator[Client]:
    """A client of the shared fleet."""
    with fleet.client() as opened:
        yield opened
