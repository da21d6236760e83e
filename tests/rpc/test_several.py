"""A channel over several controllers: it goes to the active one, and cuts what hangs on the one that was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fleet.processes import free_port
from triptych import addresses, rpc
from triptych.errors import InvalidRequest, Unavailable
from triptych.rpc.several import ACTIVE_SERVICE
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import fleet_service_pb2_grpc as pb_grpc

WAIT_S = 30.0


class Controller(pb_grpc.FleetServiceServicer):
    """Answers with its number, once it may."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = asyncio.Event()

    async def GetFleet(self, request: pb.GetFleetRequest, context: rpc.Context) -> pb.GetFleetResponse:
        self.asked.set()
        await self.may_answer.wait()
        return pb.GetFleetResponse(epoch=self.number)

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: rpc.Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        yield pb.HeartbeatResponse()
        self.asked.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(controller: Controller, *, is_active: bool) -> AsyncIterator[rpc.Server]:
    services = [(pb_grpc.add_FleetServiceServicer_to_server, controller, ACTIVE_SERVICE)]
    not_serving = () if is_active else (ACTIVE_SERVICE,)
    server = await rpc.start_server("127.0.0.1:0", services, not_serving=not_serving)
    yield server
    await server.stop(0)


async def answered(stub: pb_grpc.FleetServiceAsyncStub) -> int:
    """Who answers first."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(Unavailable):
                return (await rpc.translate(stub.GetFleet(pb.GetFleetRequest()))).epoch
            await asyncio.sleep(0.01)


async def test_it_goes_to_the_active_one_and_from_one_to_the_other() -> None:
    """What hangs on the first is cut, and looks like a connection that broke; nobody's task is cancelled."""
    one, two = Controller(1), Controller(2)
    async with serving(one, is_active=False) as first, serving(two, is_active=True) as second:
        nobody = f"127.0.0.1:{free_port()}"
        async with rpc.open_channel(f"{nobody},{first.address}, {second.address}") as channel:
            stub: pb_grpc.FleetServiceAsyncStub = pb_grpc.FleetServiceStub(channel)
            assert await answered(stub) == 2
            two.may_answer.clear()
            two.asked.clear()
            hanging = asyncio.create_task(rpc.translate(stub.GetFleet(pb.GetFleetRequest())))
            await asyncio.wait_for(two.asked.wait(), WAIT_S)
            stream = stub.Heartbeat(iter([pb.HeartbeatRequest()]))
            await asyncio.wait_for(stream.read(), WAIT_S)
            await first.set_serving(True)
            await second.set_serving(False)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(hanging, WAIT_S)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(stream.read(), WAIT_S)
            assert await answered(stub) == 1


async def test_a_task_that_is_cancelled_itself_stays_so() -> None:
    one = Controller(1)
    one.may_answer.clear()
    async with serving(one, is_active=True) as server, rpc.open_channel(server.address) as channel:
        stub: pb_grpc.FleetServiceAsyncStub = pb_grpc.FleetServiceStub(channel)
        hanging = asyncio.create_task(rpc.translate(stub.GetFleet(pb.GetFleetRequest())))
        await asyncio.wait_for(one.asked.wait(), WAIT_S)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging


def test_each_address_of_a_list_is_checked() -> None:
    assert [str(one) for one in addresses.parse_several("controller", "a:1, [::1]:2")] == ["a:1", "[::1]:2"]
    for text in ("a:1,", ",a:1", "a:1,b", ""):
        with pytest.raises(InvalidRequest, match="controller is"):
            addresses.parse_several("controller", text)
