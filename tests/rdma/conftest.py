"""Tests on real RDMA devices: two, or one twice. `make test-rdma` runs them in a virtual machine that has two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.rdma.gateway import Gateway
from tests.rdma.harness import VerbsHarness
from tests.rdma.warm import WarmServer
from tests.rings.tools import service_of
from triptych import rdma_devices
from triptych.rings.verbs.card import BINDINGS, Card, find_binding, open_card
from triptych.rpc import start_server

HOW = "no active RDMA device here; `make test-rdma` runs these in a virtual machine that has two"


@pytest.fixture(scope="session", autouse=True)
def devices() -> tuple[str, str]:
    """The controller's device, and another one on the same network if there is one."""
    active = [port.device for port in rdma_devices.ports() if port.is_active]
    if not active:
        pytest.skip(HOW)
    return active[0], active[1] if len(active) > 1 else active[0]


@pytest.fixture(scope="session", autouse=True)
def importing(devices: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[WarmServer | None]:
    """The import of torch, under way on another processor while other tests run; None where no fleet is tested."""
    if not any("test_fleet" in item.nodeid for item in request.session.items):
        yield None
        return
    # Mooncake's default spins on every core of a small machine
    server = WarmServer({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MC_WORKERS_PER_CTX": "1"})
    yield server
    server.close()


@pytest.fixture(scope="session")
def warm(importing: WarmServer | None) -> WarmServer:
    """The same, done."""
    assert importing is not None
    importing.wait_until_ready()
    return importing


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


@pytest.fixture
async def harness(card: Card) -> AsyncIterator[VerbsHarness]:
    """Served, but without a way to it yet."""
    harness = VerbsHarness(card)
    server = await start_server("127.0.0.1:0", [service_of(harness.servicer)])
    harness.ways.append(server.address)
    yield harness
    await harness.close()
    await server.stop(0)
