from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest

from services.controller.ring_service import RingServicer
from tests.fleet.processes import eventually
from tests.rings.conformance import ATTEMPTS_MAX, RING, RingConformance, job, some
from tests.rings.tools import service_of
from triptych import errors
from triptych.rings.access import RpcRing
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Removed
from triptych.rpc import error_from, open_channel, start_server
from triptych.v1 import ring_service_pb2 as pb
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

if TYPE_CHECKING:
    from triptych.v1.ring_service_pb2_grpc import RingServiceAsyncStub

UNKNOWN_RANK = 999


class SlowServicer(RingServicer):
    """Holds an answer back until told, so that a client can go away between the lease and the answer."""

    def __init__(self, ring: MemoryRing) -> None:
        super().__init__([ring], refuse_unknown)
        self.taken = asyncio.Event()
        self.ended_count = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def Claim(self, request: pb.ClaimRequest, context: object) -> pb.ClaimResponse:
        try:
            response = await super().Claim(request, context)  # type: ignore[arg-type]
            self.taken.set()
            await self.may_answer.wait()
            return response
        finally:
            self.ended_count += 1


def refuse_unknown(rank: int) -> None:
    if rank == UNKNOWN_RANK:
        raise errors.Fenced(f"rank {rank} is unknown in this epoch")


class RpcHarness:
    def __init__(self) -> None:
        self.dead_letters: list[Removed] = []
        self.host = MemoryRing(RING, 1, attempts_max=ATTEMPTS_MAX, on_dead_letter=self.dead_letters.append)
        self.servicer = SlowServicer(self.host)
        self.address = ""
        self.channels: list[grpc.aio.Channel] = []

    def channel(self) -> grpc.aio.Channel:
        self.channels.append(open_channel(self.address))
        return self.channels[-1]

    def stub(self) -> RingServiceAsyncStub:
        return RingServiceStub(self.channel())

    def ring(self) -> RpcRing:
        return RpcRing(self.channel(), RING)


@pytest.fixture
async def harness() -> AsyncIterator[RpcHarness]:
    harness = RpcHarness()
    server = await start_server("127.0.0.1:0", [service_of(harness.servicer)])
    harness.address = f"127.0.0.1:{server.port}"
    yield harness
    for channel in harness.channels:
        await channel.close()
    await server.stop(0)


class TestConformance(RingConformance):
    pass


def claim_request(rank: int, claim_id: str, wait_s: int = 0) -> pb.ClaimRequest:
    request = pb.ClaimRequest(rank=rank, ring=RING, claim_id=claim_id)
    request.wait.seconds = wait_s
    return request


async def test_a_retry_with_the_same_identity_gets_the_same_lease(harness: RpcHarness) -> None:
    stub = harness.stub()
    await harness.host.publish(job("first"), 0)
    await harness.host.publish(job("second"), 0)
    answers = [await stub.Claim(claim_request(1, "same")) for _ in range(3)]
    assert answers[0].dispatch.job_id == "first"
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]
    assert (await stub.Claim(claim_request(2, "same"))).dispatch.job_id == "second"  # another rank's
    await stub.Ack(pb.AckRequest(lease=answers[0].lease))
    assert not (await stub.Claim(claim_request(1, "same"))).HasField("lease")  # over: not given again


async def test_an_answer_that_was_lost_on_its_way_comes_with_the_next_claim(harness: RpcHarness) -> None:
    """The server has sent the answer, the client has given up before it came."""
    await harness.host.publish(job("lost"), 0)
    ring = harness.ring()
    harness.servicer.may_answer.clear()
    claim = asyncio.create_task(ring.claim(1, 5))
    await harness.servicer.taken.wait()
    claim.cancel()
    await asyncio.wait((claim,))
    harness.servicer.may_answer.set()
    again = await some(ring, 1)
    assert again.dispatch.job_id == "lost"
    await ring.ack(again.lease)


@pytest.mark.parametrize("claim_id", ["", "never tried again"])
async def test_a_lease_whose_client_went_away_before_the_answer_is_handed_back(
    harness: RpcHarness, claim_id: str
) -> None:
    await harness.host.publish(job("back"), 0)
    harness.servicer.may_answer.clear()
    call = harness.stub().Claim(claim_request(1, claim_id))
    await harness.servicer.taken.wait()
    assert harness.host.stats().leased_count == 1
    call.cancel()
    await eventually(lambda: harness.host.stats().ready_count == 1)
    harness.servicer.may_answer.set()
    assert (await some(harness.ring(), 2)).lease.attempt == 1


async def test_a_lease_that_a_retry_took_over_is_not_handed_back(harness: RpcHarness) -> None:
    await harness.host.publish(job("once"), 0)
    harness.servicer.may_answer.clear()
    first = harness.stub().Claim(claim_request(1, "same"))
    await harness.servicer.taken.wait()
    harness.servicer.taken.clear()
    retry = harness.stub().Claim(claim_request(1, "same"))
    await harness.servicer.taken.wait()
    first.cancel()
    await eventually(lambda: harness.servicer.ended_count == 1)
    harness.servicer.may_answer.set()
    lease = (await retry).lease
    assert harness.host.holds(lease)
    await harness.ring().ack(lease)


async def test_a_retry_ends_the_older_wait_of_the_same_claim(harness: RpcHarness) -> None:
    older = harness.stub().Claim(claim_request(1, "same", wait_s=60))
    await eventually(lambda: harness.host.stats().waiting_count == 1)
    retry = harness.stub().Claim(claim_request(1, "same", wait_s=60))
    assert not (await older).HasField("lease")
    await harness.host.publish(job("one"), 0)
    assert (await retry).dispatch.job_id == "one"


async def test_a_claim_ends_when_its_client_goes_away(harness: RpcHarness) -> None:
    call = harness.stub().Claim(claim_request(1, "gone", wait_s=60))
    await eventually(lambda: harness.host.stats().waiting_count == 1)
    call.cancel()
    await eventually(lambda: harness.host.stats().waiting_count == 0)
    await harness.host.publish(job("stays"), 0)
    assert (await some(harness.ring(), 2)).lease.attempt == 0


async def test_slots_are_listed(harness: RpcHarness) -> None:
    await harness.host.publish(job("held"), 0)
    held = await some(harness.ring(), 4)
    await harness.host.publish(job("waits"), 6)
    response = await harness.stub().ListSlots(pb.ListSlotsRequest(ring=RING))
    assert response.epoch == 1
    assert [slot.slot for slot in response.slots] == list(range(harness.host.slot_count))
    leased = response.slots[held.lease.slot]
    assert (leased.state, leased.rank, leased.dispatch.job_id) == (pb.SLOT_STATE_LEASED, 4, "held")
    (ready,) = [slot for slot in response.slots if slot.state == pb.SLOT_STATE_READY]
    assert (ready.rank, ready.dispatch.job_id) == (6, "waits")
    assert sum(slot.state == pb.SLOT_STATE_FREE for slot in response.slots) == harness.host.slot_count - 2


async def test_a_rank_that_is_unknown_is_refused_everywhere(harness: RpcHarness) -> None:
    ring = harness.ring()
    lease = pb.Lease(ring=RING, rank=UNKNOWN_RANK)
    for call in (
        ring.publish(job("x", sender=UNKNOWN_RANK), 0),
        ring.claim(UNKNOWN_RANK),
        ring.ack(lease),
        ring.nack(lease),
    ):
        with pytest.raises(errors.Fenced):
            await call
    assert harness.host.stats()[:2] == (0, 0)


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (pb.PublishRequest(rank=1, dispatch=job("x", sender=1)), "ring is 0"),
        (pb.PublishRequest(rank=1, ring=RING, dispatch=job("x", sender=2)), "sender_rank is 2"),
        (pb.ClaimRequest(rank=1, ring=RING, claim_id="x" * 129), "claim_id"),
        (claim_request(1, "x", wait_s=61), "wait is 61"),
        (claim_request(1, "x", wait_s=-1), "wait is -1"),
        (pb.ListSlotsRequest(), "ring is 0"),
    ],
)
async def test_a_bad_request_is_named(harness: RpcHarness, request_: object, names: str) -> None:
    stub = harness.stub()
    method = {pb.PublishRequest: stub.Publish, pb.ClaimRequest: stub.Claim, pb.ListSlotsRequest: stub.ListSlots}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await method[type(request_)](request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert names in str(error_from(refused.value))


async def test_no_controller_is_an_error_in_bounded_time(harness: RpcHarness) -> None:
    channel = open_channel("127.0.0.1:1")
    with pytest.raises(errors.Unavailable):
        await RpcRing(channel, RING).claim(1, 60)
    await channel.close()
