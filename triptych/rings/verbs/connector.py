"""A worker's connection to the rings' memory: one queue pair for all of them, opened anew whenever it breaks.

Its parameters travel in `RingService.Connect`, in the control plane. Before the controller answers it tears the old
connection down and undoes what that left half done, so an operation whose outcome nobody knows is over either way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import grpc

from triptych.errors import InvalidRequest, NoCard, RingMismatch
from triptych.rings import attach, layout
from triptych.rings.layout import Geometry
from triptych.rings.rpc import ANSWER_TIMEOUT_S
from triptych.rings.verbs.card import Card, Peer, refusal
from triptych.rings.verbs.driver import CHAIN_TIMEOUT_S, Connection, VerbsDriver
from triptych.rpc import translate
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import (
    ConnectRequest,
    ConnectResponse,
    DisconnectRequest,
    Lease,
    QueuePairAddress,
)
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub


class _Opened(NamedTuple):
    identity: tuple[int, int]
    """Rank and epoch."""
    connection: Connection
    drivers: Mapping[RingName.ValueType, VerbsDriver]


def address_message(peer: Peer) -> QueuePairAddress:
    """One end of a connection, for the wire."""
    return QueuePairAddress(**peer._asdict())


def peer_of(message: QueuePairAddress) -> Peer:
    """One end of a connection, from the wire."""
    m = message
    return Peer(m.queue_pair_number, m.packet_sequence_number, m.gid, m.lid, m.mtu_bytes, m.read_atomic_depth)


class Connector:
    """See the module's docstring. One worker's, on one event loop; close it before its card."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        card: Card,
        rings: Iterable[RingName.ValueType],
        epoch: Callable[[], int],
        adopted: Callable[[], Iterable[Lease]] = tuple,
        *,
        chain_timeout_s: float = CHAIN_TIMEOUT_S,
    ) -> None:
        """`rings` are those that the worker uses, `epoch` gives the one that it is registered in.

        `adopted` gives the leases that it holds and didn't claim here.
        """
        self._stub: RingServiceAsyncStub = RingServiceStub(channel)
        self._card, self._rings, self._epoch, self._adopted = card, tuple(rings), epoch, adopted
        self._chain_timeout_s = chain_timeout_s
        self._opening: asyncio.Task[None] | None = None
        self._opened: _Opened | None = None
        self._was_connected = False
        self._held: dict[tuple[int, int, int], Lease] = {}
        self.geometry = Geometry()
        """What the worker was built for; the controller's must be the same."""

    @property
    def card(self) -> Card:
        """The card that it goes through."""
        return self._card

    async def driver(self, name: RingName.ValueType, rank: int) -> VerbsDriver:
        """The way to one ring as `rank`, connecting where there is no connection that works.

        Raises Fenced, Unavailable and DeadlinePassed (the controller), NoCard (it has no RDMA, or this card fails),
        RingMismatch, RingRefused and RingUnreachable (its memory).
        """
        while (opened := self._opened) is None or opened.identity != self._as(rank) or opened.connection.is_broken:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(rank))
                self._opening.add_done_callback(_look_at_error)
            await asyncio.shield(self._opening)  # a cancelled caller ends its own wait, and not the connection
        return opened.drivers[name]

    def hold(self, lease: Lease) -> None:
        """The worker knows of this lease: it outlives a broken connection."""
        self._held[lease.ring, lease.slot, lease.ticket] = lease

    def drop(self, lease: Lease) -> None:
        """The lease is over."""
        self._held.pop((lease.ring, lease.slot, lease.ticket), None)

    async def give_up(self, rank: int) -> None:
        """Have the controller undo what the last connection left half done, before the rank goes on without one.

        Raises Fenced, Unavailable, DeadlinePassed: then it may not go on yet.
        """
        self._drop_opened()
        if self._was_connected:
            request = DisconnectRequest(rank=rank, epoch=self._epoch(), kept_leases=self._kept(rank))
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

    def _as(self, rank: int) -> tuple[int, int]:
        return rank, self._epoch()

    def _drop_opened(self) -> None:
        if self._opened is not None:
            self._opened.connection.close()
            self._opened = None

    async def _open(self, rank: int) -> None:
        self._drop_opened()
        try:
            connection = Connection(self._card, self.geometry, timeout_s=self._chain_timeout_s)
        except OSError as error:
            raise NoCard(refusal(self._card.place, error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            pair, identity = connection.queue_pair, self._as(rank)
            address, kept = address_message(pair.peer), self._kept(rank)
            request = ConnectRequest(rank=rank, epoch=identity[1], address=address, kept_leases=kept)
            try:
                response = await translate(self._stub.Connect(request, timeout=ANSWER_TIMEOUT_S))
            except InvalidRequest as error:
                raise NoCard(f"the controller's card can't reach {self._card.place}: {error}") from error
            self._was_connected = True
            try:
                pair.connect(peer_of(response.address), initiates=True)
            except OSError as error:
                raise NoCard(f"{self._card.place} can't reach the controller's card: {error}") from error
            self._opened = _Opened(identity, connection, self._attached(connection, response))
            undo.pop_all()

    def _kept(self, rank: int) -> list[Lease]:
        return [lease for lease in (*self._held.values(), *self._adopted()) if lease.rank == rank]

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


def _look_at_error(task: asyncio.Task[None]) -> None:
    """Nobody may be left who waits for it, and then asyncio would complain."""
    if not task.cancelled():
        task.exception()
