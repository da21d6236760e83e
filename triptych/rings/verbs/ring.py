"""A worker's side: its connection to the rings' memory, and the rings over it. The controller spends no CPU on them.

One queue pair serves all rings, and is opened again whenever it breaks. Its parameters travel in `RingService.Connect`,
in the control plane. Before the controller answers, it tears the old connection down and undoes its half-done
operations. So an operation with an unknown outcome is over, one way or the other.

Each method of a ring runs one program to its end between two awaits, which takes microseconds, so a cancelled call has
done all or nothing. There are no retries. When a connection breaks, the call raises RingUnreachable (or Fenced, if the
rank was cut off), and the next call goes over a new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc

from triptych.errors import Fenced, InvalidRequest, LeaseLost, NoCard, RingMismatch, RingRefused, RingUnreachable
from triptych.rings import attach, layout, protocol
from triptych.rings.layout import Geometry
from triptych.rings.program import Program
from triptych.rings.ring import ANSWER_TIMEOUT_S, Claimed, Member, Membership, check_rank, held_of, payload_of
from triptych.rings.verbs.card import Card, refusal
from triptych.rings.verbs.driver import Connection, VerbsDriver
from triptych.rings.waiting import Waiters
from triptych.rpc import translate
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import ConnectRequest, ConnectResponse, DisconnectRequest, Lease
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub

T = TypeVar("T")


class _Opened(NamedTuple):
    membership: Membership
    connection: Connection
    drivers: Mapping[RingName.ValueType, VerbsDriver]


class Connector:
    """The connection of one worker, on one event loop; close it before its card."""

    def __init__(self, channel: grpc.aio.Channel, card: Card, rings: Iterable[RingName.ValueType]) -> None:
        """`rings` are those that the worker uses."""
        self._stub: RingServiceAsyncStub = RingServiceStub(channel)
        self.card = card
        self._rings = tuple(rings)
        self._opening: asyncio.Task[None] | None = None
        self._opened: _Opened | None = None
        self._was_connected = False
        self._held: dict[tuple[int, int, int], Lease] = {}
        self.geometry = Geometry()
        """The geometry that this program uses; the controller's must be the same."""

    async def driver(self, name: RingName.ValueType, membership: Membership) -> VerbsDriver:
        """The driver for one ring, for this member. Connects if there is no working connection.

        Raises Fenced, Unavailable and DeadlinePassed (the controller), NoCard (it has no RDMA, or this card fails),
        RingMismatch, RingRefused and RingUnreachable (its memory).
        """
        while (opened := self._opened) is None or opened.membership != membership or opened.connection.is_broken:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(membership))
                self._opening.add_done_callback(_look_at_error)
            await asyncio.shield(self._opening)  # a cancelled caller must not end the connection
        return opened.drivers[name]

    def hold(self, lease: Lease) -> None:
        """Remember a lease of the worker, so that it outlives a broken connection."""
        self._held[lease.ring, lease.slot, lease.ticket] = lease

    def drop(self, lease: Lease) -> None:
        """Forget a lease that is over."""
        self._held.pop((lease.ring, lease.slot, lease.ticket), None)

    async def give_up(self, membership: Membership) -> None:
        """Have the controller undo what the last connection left half done, before the member goes on without one.

        Raises Fenced, Unavailable, DeadlinePassed: then it can't go on yet.
        """
        self._drop_opened()
        if self._was_connected:
            rank, epoch = membership
            request = DisconnectRequest(rank=rank, epoch=epoch, kept_leases=self._kept(rank))
            with contextlib.suppress(NoCard):  # a controller that has no card now has other rings: nothing to undo
                await translate(self._stub.Disconnect(request, timeout=ANSWER_TIMEOUT_S))
            self._was_connected = False

    async def close(self) -> None:
        """Tear the connection down; the next use opens another."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))  # it has a queue pair to close
            self._opening = None
        self._drop_opened()

    def _drop_opened(self) -> None:
        if self._opened is not None:
            self._opened.connection.close()
            self._opened = None

    async def _open(self, membership: Membership) -> None:
        self._drop_opened()
        try:
            connection = Connection(self.card, self.geometry)
        except OSError as error:
            raise NoCard(refusal(self.card.place, error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            pair = connection.queue_pair
            rank, epoch = membership
            request = ConnectRequest(rank=rank, epoch=epoch, address=pair.address, kept_leases=self._kept(rank))
            try:
                response = await translate(self._stub.Connect(request, timeout=ANSWER_TIMEOUT_S))
            except InvalidRequest as error:
                raise NoCard(f"the controller's card can't reach {self.card.place}: {error}") from error
            self._was_connected = True
            try:
                pair.connect(response.address, initiates=True)
            except OSError as error:
                raise NoCard(f"{self.card.place} can't reach the controller's card: {error}") from error
            self._opened = _Opened(membership, connection, self._attached(connection, response))
            undo.pop_all()

    def _kept(self, rank: int) -> list[Lease]:
        return [lease for lease in self._held.values() if lease.rank == rank]

    def _attached(self, connection: Connection, response: ConnectResponse) -> dict[RingName.ValueType, VerbsDriver]:
        """A driver for each ring, after its handshake."""
        found = {ring.ring: ring for ring in response.rings}
        drivers = {}
        for name in self._rings:
            if name not in found:
                raise RingMismatch(f"the controller names no address of {RingName.Name(name)}")
            ring = found[name]
            for field, theirs, ours in (
                ("layout version", ring.layout_version, layout.LAYOUT_VERSION),
                ("geometry", (ring.slot_count, ring.payload_bytes_max), tuple(self.geometry)),
            ):
                if theirs != ours:
                    raise RingMismatch(f"the ring's {field} is {theirs}, this program wants {ours}")
            driver = drivers[name] = VerbsDriver(connection, ring.address, response.remote_key)
            driver.answers_swapped = driver.execute(attach.attach(self.geometry, name, response.epoch))
        return drivers


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


def _look_at_error(task: asyncio.Task[None]) -> None:
    """Keep asyncio from complaining about an error that no caller waits for."""
    if not task.cancelled():
        task.exception()
