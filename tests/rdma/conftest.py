"""Tests on real RDMA devices: two, or one twice. `make test-rdma` runs them in a virtual machine that has two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rdma.gateway import Gateway
from triptych import rdma_devices
from triptych.rings.verbs.card import BINDINGS, Card, find_binding, open_card

HOW = "no active RDMA device here; `make test-rdma` runs these in a virtual machine that has two"


@pytest.fixture(scope="session")
def devices() -> tuple[str, str]:
    """The controller's device, and another one on the same network if there is one."""
    active = [port.device for port in rdma_devices.ports() if port.is_active]
    if not active:
        pytest.skip(HOW)
    return active[0], active[1] if len(active) > 1 else active[0]


@pytest.fixture(scope="session")
def bindings() -> list[str]:
    """The bindings that work here."""
    return [name for name in BINDINGS if not isinstance(find_binding(name), str)]


@pytest.fixture(scope="session")
def gateways(devices: tuple[str, str], bindings: list[str]) -> Iterator[tuple[Gateway, Gateway]]:
    """Two processes of workers, one on each device and, where there are two bindings, one with each."""
    with Gateway(devices[0], bindings[0]) as first, Gateway(devices[1], bindings[-1]) as second:
        yield first, second


@pytest.fixture
def card(devices: tuple[str, str]) -> Iterator[Card]:
    """The controller's card."""
    card = open_card(devices[0])
    yield card
    card.close()
