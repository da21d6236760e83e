"""A worker's connection is opened, broken, opened again and given up."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from services.controller.ring_service import RingServicer
from tests.rdma.harness import VerbsHarness
from tests.rings.conformance import RING, ROLE, job, some
from tests.rings.tools import FixedMember, cut_short, first, service_of
from triptych.errors import Fenced, LeaseLost, NoCard, RingUnreachable
from triptych.rdma_devices import IPV4_MAPPED
from triptych.rings import protocol
from triptych.rings.access import CARD_FAILURES_MAX, RingAccess
from triptych.rings.layout import Geometry, Kind
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Membership, Ring
from triptych.rings.verbs.card import BINDINGS, FULL_RIGHTS, Card, find_binding, open_card
from triptych.rings.verbs.host import RingHost
from triptych.rings.verbs.ring import Connector, VerbsRing
from triptych.rpc import open_channel, start_server, translate
from triptych.v1.ring_service_pb2 import ConnectRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

RANK, EPOCH = 7, 1
MEMBER = FixedMember(Membership(RANK, EPOCH))
GEOMETRY = Geometry()


@pytest.fixture
def worker_card(devices: tuple[str, str]) -> Iterator[Card]:
    card = open_card(devices[1])
    yield card
    card.close()


@pytest.fixture
def address(harness: VerbsHarness) -> str:
    (address,) = harness.ways
    assert isinstance(address, str)
    return address


@pytest.fixture
async def connector(address: str, worker_card: Card) -> AsyncIterator[Connector]:
    connector = Connector(open_channel(address), worker_card, [RING])
    yield connector
    await connector.close()


@pytest.fixture
def ring(connector: Connector) -> VerbsRing:
    return VerbsRing(connector, RING, MEMBER)


async def lose_an_answer(connector: Connector) -> None:
    """Lease an entry as the worker, and have nobody know of it, as where a connection breaks in the middle."""
    driver = await connector.driver(RING, MEMBER.membership)
    assert driver.execute(protocol.claim(GEOMETRY, RANK, first)) is not None


async def test_a_broken_connection_is_opened_again_and_keeps_its_leases(harness: VerbsHarness, ring: VerbsRing) -> None:
    await ring.publish(job("kept"), 0)
    kept = (await some(ring, RANK)).lease
    harness.memory.disconnect(RANK)
    with pytest.raises(RingUnreachable):
        await ring.claim(RANK)
    assert list(harness.memory.by_rank) == [RANK]  # the failed call has opened another
    assert harness.host.holds(kept)
    await ring.ack(kept)


async def test_a_lease_whose_answer_was_lost_is_delivered_again(
    harness: VerbsHarness, connector: Connector, ring: VerbsRing
) -> None:
    await ring.publish(job("lost"), 0)
    await lose_an_answer(connector)
    harness.memory.disconnect(RANK)
    with pytest.raises(RingUnreachable):
        await ring.claim(RANK)
    assert (await some(ring, RANK)).lease.attempt == 1


async def test_a_slot_that_was_reserved_and_not_filled_is_free_again(
    harness: VerbsHarness, connector: Connector, ring: VerbsRing
) -> None:
    driver = await connector.driver(RING, MEMBER.membership)
    driver.execute(cut_short(protocol.publish(GEOMETRY, b"half", RANK, 0, first), 3))
    assert harness.host.slots()[0].kind is Kind.WRITING
    harness.memory.disconnect(RANK)
    with pytest.raises(RingUnreachable):
        await ring.claim(RANK)
    assert harness.host.slots()[0].kind is Kind.FREE


async def test_another_epoch_is_refused_and_takes_nothing_back(
    harness: VerbsHarness, address: str, worker_card: Card
) -> None:
    """After a restart the controller may have adopted a lease for the worker before the worker has heard of it."""
    lease = harness.host.adopt(job("running"), RANK)
    late = Connector(open_channel(address), worker_card, [RING])
    with pytest.raises(Fenced, match="this is epoch 1, the worker is of 0"):
        await late.driver(RING, Membership(RANK, EPOCH - 1))
    await late.close()
    assert harness.host.holds(lease)


async def test_adopted_leases_are_kept(harness: VerbsHarness, address: str, worker_card: Card) -> None:
    lease = harness.host.adopt(job("running"), RANK)
    connector = Connector(open_channel(address), worker_card, [RING])
    connector.hold(lease)
    await connector.driver(RING, MEMBER.membership)
    assert harness.host.holds(lease)
    await connector.close()


def access_to(address: str, card: Card, *, is_forced: bool = False) -> tuple[RingAccess, Ring]:
    access = RingAccess(open_channel(address), [ROLE], MEMBER, card=card, is_forced=is_forced)
    return access, access.ring(ROLE)


async def test_auto_goes_over_verbs_and_says_so(harness: VerbsHarness, address: str, worker_card: Card) -> None:
    access, ring = access_to(address, worker_card)
    assert access.choice.name == ""
    await ring.publish(job("one"), 0)
    assert (access.choice.name, access.choice.reason) == (
        "verbs",
        f"{worker_card.place} works, by {worker_card.binding}",
    )
    assert list(harness.memory.by_rank) == [RANK]
    assert access.connector is not None
    await access.connector.close()


async def test_auto_goes_on_by_rpc_after_several_failures_and_loses_nothing(
    harness: VerbsHarness, address: str, worker_card: Card
) -> None:
    access, ring = access_to(address, worker_card)
    await ring.publish(job("held"), 0)
    await ring.publish(job("lost"), 0)
    held = await some(ring, RANK)
    connector = access.connector
    assert connector is not None
    for failure in range(CARD_FAILURES_MAX):
        if failure == CARD_FAILURES_MAX - 1:
            await lose_an_answer(connector)
        harness.memory.disconnect(RANK)
        with pytest.raises(RingUnreachable):
            await ring.nack(held.lease)
    lost = await some(ring, RANK)
    assert (access.choice.name, f"{CARD_FAILURES_MAX} operations failed" in access.choice.reason) == ("rpc", True)
    assert (lost.dispatch.job_id, lost.lease.attempt) == ("lost", 1)
    assert list(harness.memory.by_rank) == []
    await ring.ack(held.lease)
    await ring.ack(lost.lease)
    with pytest.raises(LeaseLost):
        await ring.ack(lost.lease)
    await connector.close()


async def test_a_controller_without_rdma_makes_auto_rpc_and_verbs_an_error(worker_card: Card) -> None:
    plain = MemoryRing(RING, EPOCH, attempts_max=3)
    servicer = RingServicer([plain], lambda rank: None, None, "it has none")
    server = await start_server("127.0.0.1:0", [service_of(servicer)])
    access, ring = access_to(server.address, worker_card)
    await ring.publish(job("one"), 0)
    assert (access.choice.name, "it has none" in access.choice.reason) == ("rpc", True)
    _, forced = access_to(server.address, worker_card, is_forced=True)
    with pytest.raises(NoCard, match="it has none"):
        await forced.publish(job("two"), 0)
    await server.stop(0)


async def test_a_controller_that_comes_back_without_its_card_is_reached_by_rpc(card: Card, worker_card: Card) -> None:
    host = RingHost(card, 1)
    shared = MemoryRing(RING, EPOCH, attempts_max=3, driver=host.driver(0), on_fence=host.disconnect)
    server = await start_server("127.0.0.1:0", [service_of(RingServicer([shared], lambda rank: None, host))])
    member = FixedMember(MEMBER.membership)
    access = RingAccess(open_channel(server.address), [ROLE], member, card=worker_card)
    await access.ring(ROLE).publish(job("before"), 0)
    assert access.choice.name == "verbs"
    await server.stop(0)
    host.close()
    member.membership = Membership(RANK, EPOCH + 1)
    plain = MemoryRing(RING, EPOCH + 1, attempts_max=3)
    servicer = RingServicer([plain], lambda rank: None, None, "its card is gone")
    server = await start_server(server.address, [service_of(servicer)])
    await access.ring(ROLE).publish(job("after"), 0)
    assert (access.choice.name, "its card is gone" in access.choice.reason) == ("rpc", True)
    assert plain.stats().ready_count == 1
    assert access.connector is not None
    await access.connector.close()
    await server.stop(0)


async def test_another_epoch_takes_another_connection(address: str, worker_card: Card) -> None:
    """The old one may lead to the memory of a controller that is gone."""
    connector = Connector(open_channel(address), worker_card, [RING])
    await connector.driver(RING, MEMBER.membership)
    with pytest.raises(Fenced, match="this is epoch 1, the worker is of 2"):
        await connector.driver(RING, Membership(RANK, EPOCH + 1))
    await connector.close()


async def test_an_end_that_cannot_be_reached_is_no_card(harness: VerbsHarness, address: str, worker_card: Card) -> None:
    """Which `auto` answers with rpc, as it does wherever one of the two cards refuses."""
    channel = open_channel(address)
    nowhere = IPV4_MAPPED + bytes((240, 0, 0, 1))
    request = ConnectRequest(rank=RANK, epoch=EPOCH)
    request.address.gid, request.address.queue_pair_number, request.address.mtu_bytes = nowhere, 17, 1024
    with pytest.raises(NoCard, match="refuses a queue pair"):
        await translate(RingServiceStub(channel).Connect(request))
    assert list(harness.memory.by_rank) == []
    access, ring = access_to(address, worker_card)
    await ring.publish(job("one"), 0)
    assert access.choice.name == "verbs"
    assert access.connector is not None
    await access.connector.close()


@pytest.mark.parametrize("binding", BINDINGS)
def test_nothing_is_left_of_a_queue_pair_that_the_card_refused(binding: str, devices: tuple[str, str]) -> None:
    """Else the card could not be closed."""
    if isinstance(reason := find_binding(binding), str):
        pytest.skip(reason)
    card = open_card(devices[1], binding)
    opened_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"."):
        card.queue_pair(1 << 46, 4096, FULL_RIGHTS, 1)  # where there is no memory
    assert len(os.listdir("/proc/self/fd")) == opened_before
    card.close()
