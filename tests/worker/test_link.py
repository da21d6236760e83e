"""A worker's tie to its controller: who was a member once comes back, whatever refuses it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.worker.link import Link
from tests.filled import filled
from triptych import rpc
from triptych.errors import AlreadyExists, Fenced, Full, LeaseLost, TriptychError, WrongState
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import fleet_service_pb2_grpc as pb_grpc


class Refusing(pb_grpc.FleetServiceServicer):
    """Answers registrations as it is told: an error, or None for a rank. Heartbeats end at once."""

    def __init__(self, answers: list[TriptychError | None]) -> None:
        self.answers = answers
        self.asked = 0

    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Any) -> pb.RegisterWorkerResponse:
        self.asked += 1
        error = self.answers.pop(0) if self.answers else None
        if error is not None:
            raise error
        return pb.RegisterWorkerResponse(rank=self.asked)

    async def Heartbeat(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.HeartbeatResponse]:
        if self.answers:
            return
        async for _ in request_iterator:
            yield pb.HeartbeatResponse()


class Idle:
    """A worker that has nothing to say."""

    def describe(self) -> pb.RegisterWorkerRequest:
        return filled(pb.RegisterWorkerRequest)

    def report(self) -> pb.HeartbeatRequest:
        return pb.HeartbeatRequest()

    def registered(self, response: pb.RegisterWorkerResponse) -> None: ...

    def apply_orders(self, orders: pb.HeartbeatResponse) -> None: ...


@contextlib.asynccontextmanager
async def linked(servicer: pb_grpc.FleetServiceServicer) -> AsyncIterator[tuple[Link, asyncio.Task[None]]]:
    """A link to this controller, and the task that runs it."""
    service = (pb_grpc.add_FleetServiceServicer_to_server, servicer, "triptych.v1.FleetService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    try:
        async with rpc.open_channel(server.address) as channel, asyncio.timeout(30):
            link = Link(channel)
            running = asyncio.create_task(link.run(Idle()))
            yield link, running
            running.cancel()
    finally:
        await server.stop(0)


async def run(answers: list[TriptychError | None], rank: int) -> None:
    """Run a link until it has this rank; raise what ends it before."""
    async with linked(Refusing(answers)) as (link, running):
        while link.membership.rank != rank and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if running.done():
            await running


async def test_a_member_is_not_ended_by_a_refusal() -> None:
    """Somebody else's model may be the fleet's for as long as this worker's rank is dead."""
    await run([None, WrongState("another model"), AlreadyExists("odd"), None], rank=4)


async def test_a_full_disk_of_the_controllers_is_waited_out_from_the_start() -> None:
    await run([Full("no space"), None], rank=2)


async def test_a_worker_that_never_was_a_member_says_why() -> None:
    with pytest.raises(WrongState, match="another model"):
        await run([WrongState("another model")], rank=1)


class Late(pb_grpc.FleetServiceServicer):
    """Ends the first stream when it is told to, and refuses a call of the first registration after the second."""

    def __init__(self, refusal: TriptychError) -> None:
        self._refusal = refusal
        self.registered: list[int] = []
        self.asked, self.again = asyncio.Event(), asyncio.Event()
        self.open_count = 0

    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Any) -> pb.RegisterWorkerResponse:
        self.registered.append(request.number)
        return pb.RegisterWorkerResponse(rank=1, epoch=len(self.registered))

    async def Heartbeat(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.HeartbeatResponse]:
        self.open_count += 1
        if self.open_count == 1:
            await self.asked.wait()
            return
        self.again.set()
        async for _ in request_iterator:
            yield pb.HeartbeatResponse()

    async def StartDirectJob(self, request: pb.StartDirectJobRequest, context: Any) -> pb.StartDirectJobResponse:
        if self.asked.is_set():
            return pb.StartDirectJobResponse()
        self.asked.set()
        await self.again.wait()
        raise self._refusal


@pytest.mark.parametrize("refusal", [Fenced("of the first"), LeaseLost("of the first")], ids=["rank", "lease"])
async def test_a_late_refusal_counts_for_its_own_registration_only(refusal: TriptychError) -> None:
    """It ends no newer one, and what it refuses is asked again as things stand now."""
    servicer = Late(refusal)
    async with linked(servicer) as (link, _running):
        await link.registered.wait()
        await link.call(lambda: link.fleet.StartDirectJob(filled(pb.StartDirectJobRequest)))
        assert servicer.registered == [1, 2]
        await asyncio.wait_for(link.registered.wait(), 30)
