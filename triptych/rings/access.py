"""How a worker reaches its rings: by itself over RDMA where it can, else by asking the controller.

The choice is made when the worker has a rank, for each rank and epoch anew, and again when a connection breaks. With
the setting `auto` whatever stands in the way of RDMA is a reason to use `rpc`; with `verbs` it is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeVar

import grpc

from triptych.errors import NoCard, RingMismatch, RingRefused, RingUnreachable
from triptych.rings.ring import Claimed, Ring
from triptych.rings.rpc import RpcRing
from triptych.rings.verbs.card import Card, open_card
from triptych.rings.verbs.connector import Connector
from triptych.rings.verbs.ring import VerbsRing
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.worker_pb2 import DriverChoice

log = logging.getLogger(__name__)

T = TypeVar("T")

FAILURES_MAX = 3
"""Operations that may fail over RDMA before a rank goes on without: each may have cost an entry an attempt."""
ASKED_FOR = "it was asked for"
_RDMA_FAILURES = (NoCard, RingMismatch, RingRefused, RingUnreachable)


def try_card(setting: str, device: str) -> tuple[Card | None, str]:
    """The card for the setting `rings`, or None and the reason.

    Raises InvalidRequest for a device that isn't there, NoCard where `verbs` is asked for and can't be had.
    """
    if setting == "rpc":
        return None, ASKED_FOR
    try:
        return open_card(device), ""
    except NoCard as error:
        if setting == "verbs":
            raise
        return None, str(error)


class RingAccess:
    """See the module's docstring. Everything belongs to one event loop; its owner closes it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        names: Collection[RingName.ValueType],
        identity: Callable[[], tuple[int, int]],
        *,
        card: Card | None,
        reason: str = "",
        is_forced: bool = False,
        adopted: Callable[[], Iterable[Lease]] = tuple,
        on_change: Callable[[RingName.ValueType], None] = lambda name: None,
    ) -> None:
        """`identity` gives the worker's rank and epoch. Without a card all goes by `rpc`, for the `reason` given."""
        self._identity, self._is_forced = identity, is_forced
        self._connector = Connector(channel, card, names, lambda: identity()[1], adopted) if card is not None else None
        self._decided: tuple[int, int] | None = None
        self._seen = (0, 0)
        self._failure_count = 0
        self._last_failure = ""
        self._rings = {name: _ChosenRing(self, channel, name, on_change) for name in names}
        self.choice = DriverChoice(name="", reason="") if card is not None else DriverChoice(name="rpc", reason=reason)
        """What is in use, and why; the name is empty before the first use."""

    def ring(self, name: RingName.ValueType) -> Ring:
        """One of the rings."""
        return self._rings[name]

    @property
    def connector(self) -> Connector | None:
        """The connection over RDMA; None without a card."""
        return self._connector

    @property
    def rank(self) -> int:
        """The worker's rank."""
        return self._identity()[0]

    async def uses_verbs(self, name: RingName.ValueType) -> bool:
        """Whether to go over RDMA now; decides where that isn't decided. Raises as `Connector.driver`."""
        identity = self._identity()
        if self._seen != identity:
            self._seen, self._failure_count = identity, 0
        if self._connector is not None and self._decided != identity:
            await self._decide(self._connector, name, identity[0])
            self._decided = identity
        return self.choice.name == "verbs"

    def doubt(self, error: Exception) -> None:
        """An operation over RDMA failed: decide anew before the next."""
        log.warning("the rings can't be reached over RDMA: %s", error)
        self._decided = None
        self._failure_count, self._last_failure = self._failure_count + 1, str(error)

    async def close(self) -> None:
        """Tear the connection down."""
        if self._connector is not None:
            await self._connector.close()
            self._connector.card.close()

    async def _decide(self, connector: Connector, name: RingName.ValueType, rank: int) -> None:
        try:
            if self._failure_count >= FAILURES_MAX and not self._is_forced:
                raise RingUnreachable(f"{self._failure_count} operations failed; the last: {self._last_failure}")
            await connector.driver(name, rank)
        except _RDMA_FAILURES as error:
            if self._is_forced:
                raise
            await connector.give_up(rank)
            self._choose("rpc", str(error))
        else:
            card = connector.card
            self._choose("verbs", ASKED_FOR if self._is_forced else f"{card.place} works, by {card.binding}")

    def _choose(self, name: str, reason: str) -> None:
        if self.choice.name != name:
            log.info("the rings are reached by %s: %s", name, reason)
        self.choice = DriverChoice(name=name, reason=reason)


class _ChosenRing:
    """A `Ring` that goes the way that its access has chosen."""

    def __init__(
        self,
        access: RingAccess,
        channel: grpc.aio.Channel,
        name: RingName.ValueType,
        on_change: Callable[[RingName.ValueType], None],
    ) -> None:
        self._access, self.name = access, name
        self._rpc = RpcRing(channel, name)
        connector = access.connector
        self._verbs: VerbsRing | None = None
        if connector is not None:
            self._verbs = VerbsRing(connector, name, lambda: access.rank, lambda: on_change(name))

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        """See `Ring.publish`."""
        return await self._through(lambda ring: ring.publish(dispatch, target_rank))

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        """See `Ring.claim`."""
        return await self._through(lambda ring: ring.claim(rank, wait_s))

    async def ack(self, lease: Lease) -> None:
        """See `Ring.ack`."""
        await self._through(lambda ring: ring.ack(lease))

    async def nack(self, lease: Lease) -> None:
        """See `Ring.nack`."""
        await self._through(lambda ring: ring.nack(lease))

    def hint(self) -> None:
        """See `Ring.hint`."""
        if self._verbs is not None:
            self._verbs.hint()

    async def _through(self, call: Callable[[Ring], Awaitable[T]]) -> T:
        if self._verbs is None or not await self._access.uses_verbs(self.name):
            return await call(self._rpc)
        try:
            return await call(self._verbs)
        except _RDMA_FAILURES as error:
            self._access.doubt(error)
            raise RingUnreachable(str(error)) from error
