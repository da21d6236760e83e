"""The `Ring` protocol, which workers use over every transport, and its values.

Delivery is at least once: an entry stays in the ring until the lease's holder acks it, and goes to another if the
holder dies. `(ticket, attempt)` in the lease names one delivery.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from triptych import errors
from triptych.ids import RANK_MAX
from triptych.rings import layout, protocol, recovery
from triptych.rings.layout import Geometry, Kind
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import Lease

log = logging.getLogger(__name__)

DISPATCH_BYTES_MAX = layout.PAYLOAD_BYTES_MAX - 256
"""Longest dispatch without the ranks, times and trace context that are set when it is published."""
WAIT_S_MAX = 60.0
"""Longest wait of one claim: short enough to notice a dead connection, long enough that idling costs nothing."""
ANSWER_TIMEOUT_S = 10.0
"""Bound on an answer of the controller, added to a claim's wait: far above any round trip, below the worker timeout."""


class Claimed(NamedTuple):
    """A lease and its dispatch."""

    lease: Lease
    dispatch: Dispatch

    @classmethod
    def of(cls, claim: protocol.Claim, name: RingName.ValueType) -> Claimed:
        """The messages of a claim in this ring."""
        return cls(lease_of(claim.held, name), dispatch_in(claim.payload))


class Membership(NamedTuple):
    """A worker's place in the fleet. Each registration gives it as a whole."""

    rank: int = 0
    """0 before the first registration."""
    epoch: int = 0
    """The epoch of the controller that gave the rank."""


class Member(Protocol):
    """A worker, as the rings that it uses know it."""

    membership: Membership
    """Its place in the fleet now."""

    def changed(self, ring: RingName.ValueType) -> None:
        """Something in this ring became claimable, and the controller may not have seen it."""


class Ring(Protocol):
    """One of the three leased rings, as its producers and consumers use it.

    Every method may also raise Fenced (this rank was declared dead: register again), and over a network
    Unavailable (try again) and DeadlinePassed.
    """

    name: RingName.ValueType
    """Which ring it is."""

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        """Put a dispatch into the ring for `target_rank` (0: anyone) and return its ticket.

        The publisher is `dispatch.sender_rank`; `target_rank` is stored as the entry's `receiver_rank`.
        Raises RingFull (try again later) and InvalidRequest (rank out of range; dispatch too long).
        """

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        """Lease the oldest entry for `rank`, waiting up to `wait_s` (0 to 60) for one; None when none came.

        A rank has one claim at a time. A cancelled claim loses nothing: no lease was taken, or it is handed
        back, or the rank's next claim returns it. Raises InvalidRequest.
        """

    async def ack(self, lease: Lease) -> None:
        """End a lease: the work is done. Raises LeaseLost."""

    async def nack(self, lease: Lease) -> None:
        """Hand a lease back for another attempt, to the same target. Raises LeaseLost."""

    def hint(self) -> None:
        """Have a waiting claim look now: an entry may have become claimable."""


class Removed(NamedTuple):
    """An entry that was removed from the ring. The controller decides about its job."""

    lease: Lease
    dispatch: Dispatch
    reason: str
    """`recovery.PAST_CAP`, `recovery.TARGET_DEAD` or `recovery.WITHDRAWN`."""

    @classmethod
    def of(cls, removal: recovery.Removal, name: RingName.ValueType) -> Removed:
        """The messages of a removal from this ring."""
        return cls(lease_of(removal.held, name), dispatch_in(removal.payload), removal.reason)


class RingStats(NamedTuple):
    """How full a ring is now, and counters since the start."""

    ready_count: int
    leased_count: int
    waiting_count: int
    """Claims that wait: idle consumers."""
    redelivered_count: int
    open_count: int
    """Ready entries that any worker may claim."""


class SlotState(NamedTuple):
    """One slot, for people."""

    slot: int
    ticket: int
    attempt: int
    rank: int
    kind: Kind
    dispatch: Dispatch | None
    """None if the slot has none, or if the slot changed while it was read."""


def dispatch_in(payload: bytes) -> Dispatch:
    """The dispatch that a slot holds. Bytes that are no dispatch give an empty one, which its claimer drops.

    Over far memory workers write the slots, and wrong bytes must end neither a claimer nor the controller.
    """
    try:
        return Dispatch.FromString(payload)
    except DecodeError:
        log.error("a slot of %d bytes holds no dispatch", len(payload))
        return Dispatch()


def lease_of(held: protocol.Held, name: RingName.ValueType) -> Lease:
    """The message of a lease."""
    return Lease(ring=name, slot=held.slot, ticket=held.ticket, attempt=held.attempt, rank=held.rank)


def held_of(lease: Lease, name: RingName.ValueType, geometry: Geometry) -> protocol.Held:
    """The lease in a message. Raises InvalidRequest for values that no lease has."""
    check_rank("lease.rank", lease.rank, least=1)
    if lease.ring != name:
        raise errors.InvalidRequest("lease.ring", lease.ring, f"{name}, the ring that is asked")
    if lease.slot >= geometry.slot_count:
        raise errors.InvalidRequest("lease.slot", lease.slot, f"0 to {geometry.slot_count - 1}")
    if lease.ticket >= layout.TICKET_COUNT:
        raise errors.InvalidRequest("lease.ticket", lease.ticket, f"0 to {layout.TICKET_COUNT - 1}")
    if lease.attempt > layout.ATTEMPT_MAX:
        raise errors.InvalidRequest("lease.attempt", lease.attempt, f"0 to {layout.ATTEMPT_MAX}")
    return protocol.Held(lease.slot, lease.ticket, lease.attempt, lease.rank)


def payload_of(dispatch: Dispatch, target_rank: int, geometry: Geometry) -> bytes:
    """The bytes of a dispatch addressed to `target_rank`. Raises InvalidRequest."""
    check_rank("dispatch.sender_rank", dispatch.sender_rank)
    check_rank("target_rank", target_rank)
    addressed = Dispatch()
    addressed.CopyFrom(dispatch)
    addressed.receiver_rank = target_rank
    payload = addressed.SerializeToString()
    if len(payload) > geometry.payload_bytes_max:
        raise errors.InvalidRequest("dispatch", f"{len(payload)} bytes", f"at most {geometry.payload_bytes_max} bytes")
    return payload


def check_rank(field: str, rank: int, least: int = 0) -> None:
    """Raise InvalidRequest unless `rank` is from `least` to RANK_MAX; 0 stands for the controller, or anyone."""
    if not least <= rank <= RANK_MAX:
        raise errors.InvalidRequest(field, rank, f"{least} to {RANK_MAX}")


def check_wait(wait_s: float) -> None:
    """Raise InvalidRequest unless a claim may wait so long. NaN is refused."""
    if not 0.0 <= wait_s <= WAIT_S_MAX:
        raise errors.InvalidRequest("wait_s", wait_s, f"0 to {WAIT_S_MAX:g} seconds")
