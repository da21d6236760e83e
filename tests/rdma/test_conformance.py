"""The suite of all rings over RDMA: workers in two processes on two devices, and mixed with workers without RDMA."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from services.controller.ring_service import RingServicer
from tests.rdma.gateway import OWN_RANK, Gateway, Workers
from tests.rings.conformance import ATTEMPTS_MAX, RING, RingConformance
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Claimed, Removed, Ring, RingStats
from triptych.rings.rpc import RpcRing
from triptych.rings.verbs.card import Card, open_card
from triptych.rings.verbs.host import RingHost
from triptych.rpc import open_channel, start_server
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.ring_service_pb2_grpc import add_RingServiceServicer_to_server


class WatchedRing(MemoryRing):
    """The controller's ring, which also counts the claims that wait at the workers."""

    others: Sequence[Gateway | Workers] = ()

    def stats(self) -> RingStats:
        """See `MemoryRing.stats`."""
        stats = super().stats()
        return stats._replace(waiting_count=stats.waiting_count + sum(other.waiting_count for other in self.others))


class RoutedRing:
    """A ring whose ranks are spread over several ways to it. Publishers and holders hint, as a worker's link does.

    A cancelled claim through a gateway goes on, and the rank's next claim gets what comes: on an emulated machine no
    call there and back is as quick as the suite's impatience. Cancelling a `VerbsRing` is tested in one process.
    """

    name = RING

    def __init__(self, ways: Sequence[Ring], host: MemoryRing, turn: itertools.count[int]) -> None:
        self._ways, self._host, self._turn = ways, host, turn
        self._going_on: dict[int, asyncio.Task[Claimed | None]] = {}

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        way = self._way(dispatch.sender_rank or next(self._turn))
        ticket = await way.publish(dispatch, target_rank)
        self._host.hint()
        return ticket

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        way = self._way(rank)
        if isinstance(way, Workers):
            return await way.claim(rank, wait_s)
        claim = self._going_on.pop(rank, None) or asyncio.create_task(way.claim(rank, wait_s))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            self._going_on[rank] = claim
            raise

    async def ack(self, lease: Lease) -> None:
        await self._way(lease.rank).ack(lease)

    async def nack(self, lease: Lease) -> None:
        await self._way(lease.rank).nack(lease)
        self._host.hint()

    def hint(self) -> None:
        """Nobody needs one here: those who wait poll."""

    def _way(self, rank: int) -> Ring:
        return self._ways[rank % len(self._ways)]


class VerbsHarness:
    """One ring on a card, and several ways to it."""

    def __init__(self, card: Card) -> None:
        self.dead_letters: list[Removed] = []
        self.memory = RingHost(card, 1)
        self.host = WatchedRing(
            RING,
            1,
            attempts_max=ATTEMPTS_MAX,
            on_dead_letter=self.dead_letters.append,
            on_fence=self.memory.disconnect,
            driver=self.memory.driver(0),
        )
        self.servicer = RingServicer({RING: self.host}, lambda rank: None, self.memory)
        self.ways: list[str | Workers] = []
        """Addresses of RingServices, and workers of this process."""
        self._turn = itertools.count()
        self._channels: list[grpc.aio.Channel] = []

    def ring(self) -> Ring:
        """The ring as one more worker sees it."""
        return RoutedRing([self._open(way) for way in self.ways], self.host, self._turn)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        for way in self.ways:
            if isinstance(way, Workers):
                await way.close()
        self.memory.close()

    def _open(self, way: str | Workers) -> Ring:
        if isinstance(way, Workers):
            return way
        self._channels.append(open_channel(way))
        return RpcRing(self._channels[-1], RING)


@pytest.fixture
async def harness(card: Card) -> AsyncIterator[VerbsHarness]:
    """Served, but without a way to it yet."""
    harness = VerbsHarness(card)
    service = (add_RingServiceServicer_to_server, harness.servicer, "triptych.v1.RingService")
    server = await start_server("127.0.0.1:0", [service])
    harness.ways.append(server.address)
    yield harness
    await harness.close()
    await server.stop(0)


class TestOneProcess(RingConformance):
    """Workers beside the controller, on both devices."""

    @pytest.fixture(autouse=True)
    async def _ways(self, harness: VerbsHarness, devices: tuple[str, str], bindings: list[str]) -> AsyncIterator[None]:
        cards = [open_card(device, bindings[-1]) for device in devices]
        (server,) = harness.ways
        assert isinstance(server, str)
        workers = [Workers(card, bytearray(8), OWN_RANK + number) for number, card in enumerate(cards)]
        for one in workers:
            await one.use(server)
        harness.ways[:], harness.host.others = workers, workers
        yield
        for one in workers:
            await one.close()
        for card in cards:
            card.close()


class TestTwoProcesses(RingConformance):
    """Workers in two processes on two devices."""

    @pytest.fixture(autouse=True)
    def _ways(self, harness: VerbsHarness, gateways: tuple[Gateway, Gateway]) -> None:
        (server,) = harness.ways
        assert isinstance(server, str)
        for gateway in gateways:
            gateway.use(server)
        harness.ways[:], harness.host.others = [gateway.address for gateway in gateways], gateways


class TestMixedWithRpc(RingConformance):
    """Workers in another process on the other device, and workers without RDMA."""

    @pytest.fixture(autouse=True)
    def _ways(self, harness: VerbsHarness, gateways: tuple[Gateway, Gateway]) -> None:
        (server,) = harness.ways
        assert isinstance(server, str)
        gateways[1].use(server)
        harness.ways.append(gateways[1].address)
        harness.host.others = gateways[1:]
