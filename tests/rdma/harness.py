"""A controller's ring on a card, served, and several ways to it: what tests of more than one worker need."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import grpc

from services.controller.ring_service import RingServicer
from tests.rdma.gateway import Gateway, Workers
from tests.rings.conformance import ATTEMPTS_MAX, RING
from triptych.rings.access import RpcRing
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Claimed, Removed, Ring, RingStats
from triptych.rings.verbs.card import Card
from triptych.rings.verbs.host import RingHost
from triptych.rpc import open_channel
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.ring_service_pb2 import Lease


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
        self.servicer = RingServicer([self.host], lambda rank: None, self.memory)
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
