"""`RingService`: the leased rings for workers without RDMA, and the way in for those with it. Decode, call, encode.

A claim's answer may be lost on its way. Two things see to its lease: a retry with the same `claim_id` gets the lease
again, and an answer that the server itself saw fail is handed back immediately. The first of the two ends the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from triptych import errors
from triptych.rings.layout import LAYOUT_VERSION
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import WAIT_S_MAX, Claimed, SlotState
from triptych.rings.verbs.host import RingHost
from triptych.roles import NEXT, RING_OF, ring_name, role_name
from triptych.rpc import Context
from triptych.v1 import ring_service_pb2 as pb
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2_grpc import RingServiceServicer

from . import completion
from .fleet import Member

log = logging.getLogger(__name__)

CLAIM_ID_CHARS_MAX = 128
"""A UUID takes 36; one id is kept for each rank and ring."""
GID_BYTES = 16
"""Length of a port's global identifier."""


class _Answer(NamedTuple):
    """The newest lease that was sent to a rank, and the call that carries it."""

    claim_id: str
    claimed: Claimed
    call: Context


class RingServicer(RingServiceServicer):
    """Serves rings.

    `member_of` is `Fleet.check`, or gives None where ranks are nobody's and may do all. `target_of` is
    `Fleet.target_of`. `host` serves the rings' memory over RDMA, in the order of `rings`; without one there is a
    `reason`.
    """

    def __init__(
        self,
        rings: Iterable[MemoryRing],
        member_of: Callable[[int], Member | None],
        host: RingHost | None = None,
        reason: str = "",
        target_of: Callable[[int], int] = lambda rank: rank,
    ) -> None:
        self._rings = {ring.name: ring for ring in rings}
        self._member_of = member_of
        self._target_of = target_of
        self._host = host
        self._reason = reason
        self._answers: dict[tuple[RingName.ValueType, int], _Answer] = {}
        self._hand_backs: set[asyncio.Task[None]] = set()

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        member = self._member_of(request.rank)
        ring = self._used(member, request.ring, publishes=True)
        if request.dispatch.sender_rank != request.rank:
            raise errors.InvalidRequest("dispatch.sender_rank", request.dispatch.sender_rank, f"{request.rank}, `rank`")
        if member is not None and request.dispatch.HasField("room"):
            completion.check_owner(request.dispatch, request.rank, member.address)
        target = self._target_of(request.dispatch.receiver_rank)
        return pb.PublishResponse(ticket=await ring.publish(request.dispatch, target))

    async def Claim(self, request: pb.ClaimRequest, context: Context) -> pb.ClaimResponse:
        """Lease the oldest dispatch for a rank, waiting for one; ends when the client goes away."""
        ring = self._used(self._member_of(request.rank), request.ring)
        if len(request.claim_id) > CLAIM_ID_CHARS_MAX:
            raise errors.InvalidRequest("claim_id", request.claim_id, f"at most {CLAIM_ID_CHARS_MAX} characters")
        claimed = self._sent_before(request, ring)
        if claimed is None:
            claimed = await ring.claim(request.rank, _wait_s(request))
        if claimed is None:
            return pb.ClaimResponse()
        key = (request.ring, request.rank)
        self._remember(key, _Answer(request.claim_id, claimed, context))
        # The stub wants a subclass of a private type where gRPC takes any callable.
        context.add_done_callback(lambda _: self._on_over(key, context))  # type: ignore[arg-type]
        return pb.ClaimResponse(lease=claimed.lease, dispatch=claimed.dispatch)

    async def Ack(self, request: pb.AckRequest, context: Context) -> pb.AckResponse:
        await self._used(self._member_of(request.lease.rank), request.lease.ring).ack(request.lease)
        return pb.AckResponse()

    async def Nack(self, request: pb.NackRequest, context: Context) -> pb.NackResponse:
        await self._used(self._member_of(request.lease.rank), request.lease.ring).nack(request.lease)
        return pb.NackResponse()

    async def Connect(self, request: pb.ConnectRequest, context: Context) -> pb.ConnectResponse:
        """Give a rank a connection to the rings' memory. What its last one left half done is undone first."""
        host = self._cut_off(request)
        if len(request.address.gid) != GID_BYTES:
            raise errors.InvalidRequest("address.gid", request.address.gid, f"{GID_BYTES} bytes")
        pair = host.connect(request.rank, request.address)
        response = pb.ConnectResponse(address=pair.address, remote_key=pair.remote_key, epoch=request.epoch)
        slot_count, payload_bytes_max = host.geometry
        for index, name in enumerate(self._rings):
            response.rings.add(
                ring=name,
                address=host.address(index),
                layout_version=LAYOUT_VERSION,
                slot_count=slot_count,
                payload_bytes_max=payload_bytes_max,
            )
        return response

    async def Disconnect(self, request: pb.DisconnectRequest, context: Context) -> pb.DisconnectResponse:
        """Take a rank's connection away, and undo what it left half done."""
        self._cut_off(request)
        return pb.DisconnectResponse()

    def _cut_off(self, request: pb.ConnectRequest | pb.DisconnectRequest) -> RingHost:
        """End a rank's connection. Nothing is awaited here: no other call comes between fence and undoing."""
        self._member_of(request.rank)
        if self._host is None:
            raise errors.NoCard(f"the controller serves its rings by RingService only: {self._reason}")
        for ring in self._rings.values():
            if request.epoch != ring.epoch:  # it may hold a lease here that it hasn't heard of
                raise errors.Fenced(f"this is epoch {ring.epoch}, the worker is of {request.epoch}; register again")
        self._host.disconnect(request.rank)
        for ring in self._rings.values():
            ring.abandon(request.rank, request.kept_leases)
        return self._host

    async def ListSlots(self, request: pb.ListSlotsRequest, context: Context) -> pb.ListSlotsResponse:
        ring = self._ring(request.ring)
        return pb.ListSlotsResponse(slots=[_slot_message(slot) for slot in ring.slots()], epoch=ring.epoch)

    def _used(self, member: Member | None, name: RingName.ValueType, *, publishes: bool = False) -> MemoryRing:
        """A ring, for a worker whose role claims from it, or publishes to it. Raises NotAllowed for another role's."""
        ring = self._ring(name)
        if member is not None:
            claimer = NEXT.get(member.role) if publishes else member.role
            if claimer is None or RING_OF.get(claimer) != name:
                role = role_name(member.role)
                raise errors.NotAllowed(
                    f"rank {member.rank} is of the role {role}, which has no such use of {ring_name(name)}"
                )
        return ring

    def _ring(self, name: RingName.ValueType) -> MemoryRing:
        if name not in self._rings:
            accepted = ", ".join(RingName.Name(known) for known in self._rings)
            raise errors.InvalidRequest("ring", name, accepted)
        return self._rings[name]

    def _sent_before(self, request: pb.ClaimRequest, ring: MemoryRing) -> Claimed | None:
        """The lease that an earlier try of this claim took, if it is still held."""
        answer = self._answers.get((request.ring, request.rank))
        if answer is None or not request.claim_id or answer.claim_id != request.claim_id:
            return None
        return answer.claimed if ring.holds(answer.claimed.lease) else None

    def _on_over(self, key: tuple[RingName.ValueType, int], call: Context) -> None:
        """The call is over. If its answer didn't get out, and no retry has taken it over, hand the lease back."""
        was_sent = call.done() and not call.cancelled()  # gRPC documents `cancelled`, but 1.85 only leaves `done` unset
        answer = self._answers.get(key)
        if was_sent or answer is None or answer.call is not call:
            return
        del self._answers[key]
        hand_back = asyncio.get_running_loop().create_task(self._hand_back(answer.claimed.lease))
        self._hand_backs.add(hand_back)
        hand_back.add_done_callback(self._hand_backs.discard)

    async def _hand_back(self, lease: pb.Lease) -> None:
        try:
            await self._ring(lease.ring).nack(lease)
        except (errors.LeaseLost, errors.Fenced) as error:
            log.info("lease of rank %d needed no handing back: %s", lease.rank, error)

    def _remember(self, key: tuple[RingName.ValueType, int], answer: _Answer) -> None:
        """Keep an answer for retries. Only leases that are still held are worth keeping: never more than slots."""
        self._answers[key] = answer
        if len(self._answers) > sum(ring.slot_count for ring in self._rings.values()):
            held = (item for item in self._answers.items() if self._rings[item[0][0]].holds(item[1].claimed.lease))
            self._answers = dict(held)


def _wait_s(request: pb.ClaimRequest) -> float:
    """How long a claim may wait. Raises InvalidRequest."""
    wait_s = request.wait.ToNanoseconds() / 1e9
    if not 0.0 <= wait_s <= WAIT_S_MAX:
        raise errors.InvalidRequest("wait", wait_s, f"0 to {WAIT_S_MAX:g} seconds")
    return wait_s


def _slot_message(slot: SlotState) -> pb.RingSlot:
    message = pb.RingSlot(
        slot=slot.slot,
        state=pb.SlotState.Value(f"SLOT_STATE_{slot.kind.name}"),
        ticket=slot.ticket,
        attempt=slot.attempt,
        rank=slot.rank,
        dispatch=slot.dispatch,
    )
    if message.dispatch.HasField("room"):
        message.dispatch.room.ClearField("capability")  # for people, who have no business in rooms
    return message
