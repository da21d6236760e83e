"""A ring that a worker reaches over RDMA. The controller spends no CPU on it.

Each method runs one program to its end between two awaits, which takes microseconds, so a cancelled call has done all
or nothing. There are no retries. When a connection breaks, the call raises RingUnreachable (or Fenced, if the rank was
cut off), and the next call goes over a new connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from triptych.errors import Fenced, LeaseLost, RingRefused, RingUnreachable
from triptych.rings import protocol
from triptych.rings.layout import Geometry
from triptych.rings.program import Program
from triptych.rings.ring import Claimed, Member, check_rank, held_of, payload_of
from triptych.rings.verbs.connector import Connector
from triptych.rings.waiting import Waiters
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import Lease

T = TypeVar("T")


class VerbsRing:
    """A `Ring` over a connector. It tells `member`, the worker, when it made something claimable."""

    def __init__(self, connector: Connector, name: RingName.ValueType, member: Member) -> None:
        self.name = name
        self._connector = connector
        self._geometry = connector.geometry
        self._member = member
        self._choose = random.Random().randrange
        self._waiters = Waiters(polls=True)

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        """See `Ring.publish`. After RingUnreachable the entry may be there all the same; a second does no harm."""
        payload = payload_of(dispatch, target_rank, self._geometry)
        rank = self._member.membership.rank
        ticket = await self._run(
            rank, lambda: protocol.publish(self._geometry, payload, rank, target_rank, self._choose)
        )
        self._member.changed(self.name)
        return ticket

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        """See `Ring.claim`. It polls, more and more slowly, and looks immediately when there is a hint."""
        check_rank("rank", rank, least=1)
        return await self._waiters.claim(rank, wait_s, self._take)

    async def ack(self, lease: Lease) -> None:
        """See `Ring.ack`. After RingUnreachable, LeaseLost may mean that the first try succeeded."""
        await self._end(lease, protocol.ack)

    async def nack(self, lease: Lease) -> None:
        """See `Ring.nack`. After RingUnreachable, LeaseLost may mean that the first try succeeded."""
        await self._end(lease, protocol.nack)
        self._member.changed(self.name)

    def hint(self) -> None:
        """See `Ring.hint`."""
        self._waiters.wake()

    async def _take(self, rank: int) -> Claimed | None:
        claim = await self._run(rank, lambda: protocol.claim(self._geometry, rank, self._choose))
        if claim is None:
            return None
        claimed = Claimed.of(claim, self.name)
        self._connector.hold(claimed.lease)
        return claimed

    async def _end(self, lease: Lease, program: Callable[[Geometry, protocol.Held], Program[object]]) -> None:
        held = held_of(lease, self.name, self._geometry)
        try:
            await self._run(lease.rank, lambda: program(self._geometry, held))
        except LeaseLost:
            self._connector.drop(lease)
            raise
        self._connector.drop(lease)

    async def _run(self, rank: int, make: Callable[[], Program[T]]) -> T:
        membership = self._member.membership
        if rank != membership.rank:
            raise Fenced(f"rank {rank} is no longer this worker's")
        driver = await self._connector.driver(self.name, membership)
        try:
            return driver.execute(make())
        except (RingRefused, RingUnreachable):
            await self._connector.driver(self.name, membership)  # raises Fenced where that is the reason
            raise
