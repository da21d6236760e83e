"""A worker's way to its rings: over RDMA where it can, else by RPCs to the controller.

The choice is made when the worker has a rank, for each rank and epoch, and again when a connection breaks. With
the setting `auto` any obstacle to RDMA is a reason to use `rpc`; with `verbs` it is an error.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, TypeVar

import grpc

from triptych.errors import NoCard, RingMismatch, RingRefused, RingUnreachable
from triptych.rings.ring import ANSWER_TIMEOUT_S, Claimed, Member, Membership, Ring, check_rank, check_wait
from triptych.rings.verbs.card import Card, open_card
from triptych.rings.verbs.ring import Connector, VerbsRing
from triptych.roles import RING_OF
from triptych.rpc import translate
from triptych.v1.dispatch_pb2 import Dispatch, Role
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import AckRequest, ClaimRequest, Lease, NackRequest, PublishRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub
from triptych.v1.worker_pb2 import DriverChoice

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub

log = logging.getLogger(__name__)

T = TypeVar("T")

CARD_FAILURES_MAX = 3
"""Failed operations after which a rank goes on without RDMA. Each may have cost an entry an attempt."""
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


class RpcRing:
    """A `Ring` over a channel to the controller's `RingService`, for one worker: it has one claim at a time.

    The controller runs the same programs on its own memory, and a claim waits there, so an idle worker costs nothing.
    Each method is one call, without a retry; `Ring` lists the errors. A claim whose answer was lost (an error, a
    cancellation) keeps its id: the next claim of the same rank asks for the same lease.
    """

    def __init__(self, channel: grpc.aio.Channel, name: RingName.ValueType) -> None:
        self.name = name
        self._stub: RingServiceAsyncStub = RingServiceStub(channel)
        self._unanswered_claim: tuple[int, str] | None = None

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        """See `Ring.publish`."""
        check_rank("target_rank", target_rank)
        request = PublishRequest(rank=dispatch.sender_rank, ring=self.name, dispatch=dispatch)
        request.dispatch.receiver_rank = target_rank
        return (await translate(self._stub.Publish(request, timeout=ANSWER_TIMEOUT_S))).ticket

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        """See `Ring.claim`."""
        check_wait(wait_s)
        if self._unanswered_claim is None or self._unanswered_claim[0] != rank:
            self._unanswered_claim = (rank, uuid.uuid4().hex)
        request = ClaimRequest(rank=rank, ring=self.name, claim_id=self._unanswered_claim[1])
        request.wait.FromNanoseconds(int(wait_s * 1e9))
        response = await translate(self._stub.Claim(request, timeout=wait_s + ANSWER_TIMEOUT_S))
        self._unanswered_claim = None
        return Claimed(response.lease, response.dispatch) if response.HasField("lease") else None

    async def ack(self, lease: Lease) -> None:
        """See `Ring.ack`. After a lost answer, LeaseLost may mean that the first try succeeded."""
        await translate(self._stub.Ack(AckRequest(lease=lease), timeout=ANSWER_TIMEOUT_S))

    async def nack(self, lease: Lease) -> None:
        """See `Ring.nack`. After a lost answer, LeaseLost may mean that the first try succeeded."""
        await translate(self._stub.Nack(NackRequest(lease=lease), timeout=ANSWER_TIMEOUT_S))

    def hint(self) -> None:
        """See `Ring.hint`. Claims wait at the controller, which needs no hint."""


class RingAccess:
    """See the module's docstring. Everything belongs to one event loop; its owner closes it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        roles: Collection[Role.ValueType],
        member: Member,
        *,
        card: Card | None,
        reason: str = "",
        is_forced: bool = False,
    ) -> None:
        """Reach the rings that `roles` claim from, for the worker `member`. Without a card everything goes by `rpc`,
        for the `reason` given.
        """
        self._member = member
        self._is_forced = is_forced
        self.connector = Connector(channel, card, [RING_OF[role] for role in roles]) if card is not None else None
        """The connection over RDMA; None without a card."""
        self._decided: Membership | None = None
        self._seen = Membership()
        self._failure_count = 0
        self._last_failure = ""
        self._rings = {role: _ChosenRing(self, channel, RING_OF[role], member) for role in roles}
        self.choice = DriverChoice(name="", reason="") if card is not None else DriverChoice(name="rpc", reason=reason)
        """What is in use, and why; the name is empty before the first use."""

    def ring(self, role: Role.ValueType) -> Ring:
        """The ring that `role` claims from."""
        return self._rings[role]

    def adopt(self, lease: Lease) -> None:
        """The worker holds this lease, which the controller gave it and no claim."""
        if self.connector is not None:
            self.connector.hold(lease)

    async def uses_verbs(self, name: RingName.ValueType) -> bool:
        """Whether to go over RDMA now; decides where that isn't decided. Raises as `Connector.driver`."""
        membership = self._member.membership
        if self._seen != membership:
            self._seen = membership
            self._failure_count = 0
        if self.connector is not None and self._decided != membership:
            await self._decide(self.connector, name, membership)
            self._decided = membership
        return self.choice.name == "verbs"

    def doubt(self, error: Exception) -> None:
        """An operation over RDMA failed: decide again before the next."""
        log.warning("the rings can't be reached over RDMA: %s", error)
        self._decided = None
        self._failure_count += 1
        self._last_failure = str(error)

    async def close(self) -> None:
        """Tear the connection down."""
        if self.connector is not None:
            await self.connector.close()
            self.connector.card.close()

    async def _decide(self, connector: Connector, name: RingName.ValueType, membership: Membership) -> None:
        try:
            if self._failure_count >= CARD_FAILURES_MAX and not self._is_forced:
                raise RingUnreachable(f"{self._failure_count} operations failed; the last: {self._last_failure}")
            await connector.driver(name, membership)
        except _RDMA_FAILURES as error:
            if self._is_forced:
                raise
            await connector.give_up(membership)
            self._choose("rpc", str(error))
        else:
            card = connector.card
            self._choose("verbs", ASKED_FOR if self._is_forced else f"{card.place} works, by {card.binding}")

    def _choose(self, name: str, reason: str) -> None:
        if self.choice.name != name:
            log.info("the rings are reached by %s: %s", name, reason)
        self.choice = DriverChoice(name=name, reason=reason)


class _ChosenRing:
    """A `Ring` that uses the way that its access has chosen."""

    def __init__(self, access: RingAccess, channel: grpc.aio.Channel, name: RingName.ValueType, member: Member) -> None:
        self.name = name
        self._access = access
        self._rpc = RpcRing(channel, name)
        self._verbs = VerbsRing(access.connector, name, member) if access.connector is not None else None

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
