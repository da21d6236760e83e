"""A ring reached through the controller's `RingService`: for workers without RDMA.

The controller runs the same programs on its own memory, and a claim waits there, so an idle worker costs nothing.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, TypeVar

import grpc

from triptych.rings.ring import Claimed, check_rank, check_wait
from triptych.rpc import translate
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import AckRequest, ClaimRequest, Lease, NackRequest, PublishRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
"""Bound on an answer, added to a claim's wait: far above any round trip, below the worker timeout."""


class RpcRing:
    """A `Ring` over a channel to the controller, for one worker: it has one claim at a time.

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
