"""A worker without RDMA reaches its rings by RPCs, and says why."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.controller.ring_service import RingServicer
from services.controller.rings import open_rings
from tests.rings.conformance import ATTEMPTS_MAX, RING, ROLE, RingConformance, job
from tests.rings.tools import FixedMember, service_of
from triptych import rdma_devices
from triptych.config import ControllerConfig
from triptych.errors import InvalidRequest, NoCard
from triptych.rings.access import RingAccess, try_card
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Membership, Removed, Ring
from triptych.rpc import open_channel, start_server, translate
from triptych.v1.ring_service_pb2 import ConnectRequest, QueuePairAddress
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

without_rdma = pytest.mark.skipif(bool(rdma_devices.ports()), reason="this machine has an RDMA device")


class AccessHarness:
    """Rings reached through a `RingAccess` that has no card."""

    def __init__(self) -> None:
        self.dead_letters: list[Removed] = []
        self.host = MemoryRing(RING, 1, attempts_max=ATTEMPTS_MAX, on_dead_letter=self.dead_letters.append)
        self.address = ""
        self.opened: list[RingAccess] = []

    def access(self) -> RingAccess:
        channel = open_channel(self.address)
        self.opened.append(RingAccess(channel, [ROLE], FixedMember(Membership(1, 1)), card=None, reason="because"))
        return self.opened[-1]

    def ring(self) -> Ring:
        return self.access().ring(ROLE)


@pytest.fixture
async def harness() -> AsyncIterator[AccessHarness]:
    harness = AccessHarness()
    servicer = RingServicer([harness.host], lambda rank: None, None, "nobody asked for it")
    server = await start_server("127.0.0.1:0", [service_of(servicer)])
    harness.address = server.address
    yield harness
    for access in harness.opened:
        await access.close()
    await server.stop(0)


class TestConformance(RingConformance):
    pass


async def test_it_says_what_is_in_use_and_why(harness: AccessHarness) -> None:
    access = harness.access()
    await access.ring(ROLE).publish(job("one"), 0)
    access.ring(ROLE).hint()
    assert (access.choice.name, access.choice.reason) == ("rpc", "because")


async def test_a_controller_without_rdma_says_so(harness: AccessHarness) -> None:
    request = ConnectRequest(rank=1, address=QueuePairAddress(gid=bytes(16)))
    with pytest.raises(NoCard, match="RingService only: nobody asked for it"):
        await translate(RingServiceStub(open_channel(harness.address)).Connect(request))


@without_rdma
def test_without_a_device_auto_is_rpc_and_verbs_an_error() -> None:
    assert try_card("auto", "") == (None, "this machine has no RDMA device")
    assert try_card("rpc", "") == (None, "it was asked for")
    with pytest.raises(NoCard, match="no RDMA device"):
        try_card("verbs", "")


@without_rdma
def test_the_controllers_rings_without_a_device() -> None:
    rings = open_rings(ControllerConfig(), epoch=1)
    assert (rings.host, rings.reason) == (None, "this machine has no RDMA device")
    assert {ring.driver.name for ring in rings.by_role.values()} == {"memory"}
    rings.close()
    with pytest.raises(NoCard):
        open_rings(ControllerConfig(rings="verbs"), epoch=1)


def test_a_device_with_an_impossible_name_is_refused_on_every_machine() -> None:
    with pytest.raises((InvalidRequest, NoCard)):
        try_card("verbs", "no:such:device")
