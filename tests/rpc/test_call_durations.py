"""Every call that a server answers is measured, by its method and by how it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.filled import filled
from tests.fleet.processes import eventually
from triptych import errors, rpc, telemetry
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc

SERVICE = "triptych.v1.WorkerService"


class Servicer(pb_grpc.WorkerServiceServicer):
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.waits = False
        self.began = asyncio.Event()

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        self.began.set()
        if self.error is not None:
            raise self.error
        if self.waits:
            await asyncio.Event().wait()
        return pb.GetWorkerResponse()

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Any) -> Any:
        for _ in range(3):
            yield pb.FetchRoomResponse(chunk=b"x")
        if self.error is not None:
            raise self.error


def points(reader: InMemoryMetricReader) -> list[Any]:
    data = reader.get_metrics_data()
    found = [
        metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "rpc.server.call.duration"
    ]
    return [point for metric in found for point in metric.data.data_points]


def ends(reader: InMemoryMetricReader) -> dict[tuple[str, str], int]:
    """How many calls there were, by method and status."""
    return {(p.attributes["rpc.method"], p.attributes["rpc.response.status_code"]): p.count for p in points(reader)}


async def test_each_call_counts_once_under_its_method_and_status() -> None:
    reader, servicer = InMemoryMetricReader(), Servicer()
    metrics = telemetry.Metrics(MeterProvider([reader]).get_meter("test"))
    service = (pb_grpc.add_WorkerServiceServicer_to_server, servicer, SERVICE)
    server = await rpc.start_server("127.0.0.1:0", [service], metrics=metrics)
    try:
        async with rpc.open_channel(server.address) as channel:
            stub = pb_grpc.WorkerServiceStub(channel)
            for error in (None, None, errors.NotFound("no such thing"), RuntimeError("a bug")):
                servicer.error = error
                await asyncio.gather(
                    stub.GetWorker(pb.GetWorkerRequest(), timeout=10),
                    drain(stub.FetchRoom(filled(pb.FetchRoomRequest), timeout=10)),
                    return_exceptions=True,
                )
            servicer.error, servicer.waits = None, True
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetWorker(pb.GetWorkerRequest(), timeout=0.3)
            servicer.began.clear()
            call = stub.GetWorker(pb.GetWorkerRequest(), timeout=30)
            await asyncio.wait_for(servicer.began.wait(), 10)
            call.cancel()
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/made.up/Method")(b"", timeout=10)
            expected = {
                **{(f"{SERVICE}/{m}", "OK"): 2 for m in ("GetWorker", "FetchRoom")},
                **{(f"{SERVICE}/{m}", "NOT_FOUND"): 1 for m in ("GetWorker", "FetchRoom")},
                **{(f"{SERVICE}/{m}", "INTERNAL"): 1 for m in ("GetWorker", "FetchRoom")},
                (f"{SERVICE}/GetWorker", "DEADLINE_EXCEEDED"): 1,
                (f"{SERVICE}/GetWorker", "CANCELLED"): 1,
                ("_OTHER", "UNIMPLEMENTED"): 1,
            }
            await eventually(lambda: ends(reader) == expected)
    finally:
        await server.stop(0)
    for point in points(reader):
        code = point.attributes["rpc.response.status_code"]
        assert point.attributes["rpc.system.name"] == "grpc"
        assert point.attributes.get("error.type") == (None if code in ("OK", "NOT_FOUND", "CANCELLED") else code)


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass
