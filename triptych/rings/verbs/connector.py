"""A worker's connection to the rings' memory: one queue pair for all rings, opened again whenever it breaks.

Its parameters travel in `RingService.Connect`, in the control plane. Before the controller answers, it tears the old
connection down and undoes its half-done operations. So an operation with an unknown outcome is over, one way or the
other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import grpc

from triptych.errors import InvalidRequest, NoCard, RingMismatch
from triptych.rings import attach, layout
from triptych.rings.layout import Geometry
from triptych.rings.ring import Membership
from triptych.rings.rpc import ANSWER_TIMEOUT_S
from triptych.rings.verbs.card import Card, refusal
from triptych.rings.verbs.driver import Connection, VerbsDriver
from triptych.rpc import translate
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import ConnectRequest, ConnectResponse, DisconnectRequest, Lease
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub


class _Opened(NamedTuple):
    membership: Membership
    connection: Connection
    drivers: Mapping[RingName.ValueType, VerbsDriver]


class Connector:
    """See the module's docstring. One worker's, on one event loop; close it before its card."""

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


def _look_at_error(task: asyncio.Task[None]) -> None:
    """Keep asyncio from complaining about an error that no caller waits for."""
    if not task.cancelled():
        task.exception()
