"""Which calls become spans, and whose children they are: a real server, a real channel, a real collector."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.trace import SpanKind

from tests.filled import filled
from tests.telemetry.receiver import Received, Receiver, of_job, the_root
from triptych import rpc, telemetry
from triptych.errors import LeaseLost, NotFound
from triptych.security.rules import RULES
from triptych.v1 import fleet_service_pb2 as fleet
from triptych.v1 import fleet_service_pb2_grpc as fleet_grpc
from triptych.v1 import generation_service_pb2 as generation
from triptych.v1 import generation_service_pb2_grpc as generation_grpc
from triptych.v1 import ring_service_pb2 as ring
from triptych.v1 import ring_service_pb2_grpc as ring_grpc
from triptych.v1 import worker_service_pb2 as worker
from triptych.v1 import worker_service_pb2_grpc as worker_grpc
from triptych.v1.rules_pb2 import SPAN_UNSPECIFIED

JOB = "job-7"


class Generation(generation_grpc.GenerationServiceServicer):
    traceparent = ""

    async def CreateJob(self, request: Any, context: Any) -> Any:
        self.traceparent = telemetry.inject()
        return generation.CreateJobResponse()

    async def CancelJob(self, request: Any, context: Any) -> Any:
        raise NotFound(f"there is no job {request.job_id!r}")

    async def GetJob(self, request: Any, context: Any) -> Any:
        return generation.GetJobResponse()

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield generation.WatchJobResponse()


class Fleet(fleet_grpc.FleetServiceServicer):
    async def StartPhase(self, request: Any, context: Any) -> Any:
        return fleet.StartPhaseResponse()

    async def CompletePhase(self, request: Any, context: Any) -> Any:
        raise LeaseLost("ticket 3, attempt 0 is no longer yours")

    async def GetFleet(self, request: Any, context: Any) -> Any:
        return fleet.GetFleetResponse()

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield fleet.HeartbeatResponse()


class Rings(ring_grpc.RingServiceServicer):
    async def Claim(self, request: Any, context: Any) -> Any:
        return ring.ClaimResponse()

    async def Publish(self, request: Any, context: Any) -> Any:
        return ring.PublishResponse()


class Rooms(worker_grpc.WorkerServiceServicer):
    async def FetchRoom(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield worker.FetchRoomResponse(chunk=b"x")


@contextlib.asynccontextmanager
async def serving(generation_servicer: Generation) -> AsyncIterator[str]:
    """The address of a server with all of our services."""
    server = await rpc.start_server(
        "127.0.0.1:0",
        [
            (
                generation_grpc.add_GenerationServiceServicer_to_server,
                generation_servicer,
                "triptych.v1.GenerationService",
            ),
            (fleet_grpc.add_FleetServiceServicer_to_server, Fleet(), "triptych.v1.FleetService"),
            (ring_grpc.add_RingServiceServicer_to_server, Rings(), "triptych.v1.RingService"),
            (worker_grpc.add_WorkerServiceServicer_to_server, Rooms(), "triptych.v1.WorkerService"),
        ],
    )
    try:
        yield server.address
    finally:
        await server.stop(0)


def named(spans: list[Received], name: str, kind: SpanKind) -> Received:
    # OTLP numbers the kinds from 1, the API from 0.
    found = [span for span in spans if span.name.endswith(name) and span.kind == kind.value + 1]
    assert len(found) == 1, [(span.name, span.kind) for span in spans]
    return found[0]


async def test_a_call_makes_one_span_at_its_server_in_its_callers_trace(exporting: Receiver) -> None:
    with telemetry.setup("all-in-one"):
        servicer = Generation()
        async with serving(servicer) as address, rpc.open_channel(address) as channel:
            with telemetry.span("generate", kind="client", job_id=JOB):
                await generation_grpc.GenerationServiceStub(channel).CreateJob(filled(generation.CreateJobRequest))
    spans = of_job(exporting.spans, JOB)
    assert the_root(spans).name == "generate"
    create = named(spans, "triptych.v1.GenerationService/CreateJob", SpanKind.SERVER)
    assert create.parent_id == the_root(spans).span_id
    assert telemetry.trace_id(telemetry.extract(servicer.traceparent)) == create.trace_id
    assert create.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "triptych.v1.GenerationService/CreateJob",
        "rpc.response.status_code": "OK",
    }
    assert len(spans) == len(exporting.spans) == 2


async def test_polling_streams_and_a_workers_calls_make_no_spans(exporting: Receiver) -> None:
    with telemetry.setup("all-in-one"):
        async with serving(Generation()) as address, rpc.open_channel(address) as channel:
            fleet_stub = fleet_grpc.FleetServiceStub(channel)
            generation_stub = generation_grpc.GenerationServiceStub(channel)

            async def poll() -> None:
                heartbeat = fleet_stub.Heartbeat(iter([filled(fleet.HeartbeatRequest)]))
                assert [r async for r in heartbeat] == [fleet.HeartbeatResponse()]
                assert len([r async for r in generation_stub.WatchJob(filled(generation.WatchJobRequest))]) == 1
                await generation_stub.GetJob(filled(generation.GetJobRequest))
                await fleet_stub.GetFleet(fleet.GetFleetRequest())
                rings = ring_grpc.RingServiceStub(channel)
                await rings.Claim(filled(ring.ClaimRequest))
                await rings.Publish(filled(ring.PublishRequest))
                await fleet_stub.StartPhase(filled(fleet.StartPhaseRequest))
                room = worker_grpc.WorkerServiceStub(channel).FetchRoom(filled(worker.FetchRoomRequest))
                assert [r.chunk async for r in room] == [b"x"] * 3
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
                assert len([r async for r in listed]) == 1

            await poll()
            with pytest.raises(grpc.aio.AioRpcError):
                await generation_stub.CancelJob(filled(generation.CancelJobRequest))  # outside of any trace
            with telemetry.span("a job"):
                await poll()
    assert [span.name for span in exporting.spans] == ["a job"]


def test_no_stream_says_that_it_makes_a_span() -> None:
    """Nobody would make it."""
    pool = descriptor_pool.Default()
    for path, rules in RULES.items():
        service, _, name = path[1:].partition("/")
        method = pool.FindServiceByName(service).methods_by_name[name]
        is_stream = method.client_streaming or method.server_streaming
        assert not is_stream or rules.span == SPAN_UNSPECIFIED, path


async def test_a_call_without_a_trace_begins_one_at_the_controller(exporting: Receiver) -> None:
    servicer = Generation()
    with telemetry.setup("controller"):
        async with serving(servicer) as address, grpc.aio.insecure_channel(address) as bare:
            await generation_grpc.GenerationServiceStub(bare).CreateJob(filled(generation.CreateJobRequest))
    root = the_root(exporting.spans)
    assert root.name == "triptych.v1.GenerationService/CreateJob"
    assert root.trace_id == telemetry.trace_id(telemetry.extract(servicer.traceparent))


async def test_an_error_marks_the_span_and_keeps_the_callers_values_out(exporting: Receiver) -> None:
    with telemetry.setup("all-in-one"):
        async with serving(Generation()) as address, rpc.open_channel(address) as channel:
            stub = generation_grpc.GenerationServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught, telemetry.span("of a caller"):
                await stub.CancelJob(generation.CancelJobRequest(job_id="job-secret"))
    assert type(rpc.error_from(caught.value)) is NotFound
    cancel = named(exporting.spans, "CancelJob", SpanKind.SERVER)
    assert cancel.status_code == 2
    assert cancel.attributes["rpc.response.status_code"] == cancel.attributes["error.type"] == "NOT_FOUND"
    assert "secret" not in repr(cancel)


async def test_a_trace_state_goes_along(exporting: Receiver) -> None:
    servicer = Generation()
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    with telemetry.setup("controller"):
        async with serving(servicer) as address, grpc.aio.insecure_channel(address) as bare:
            metadata = (("traceparent", traceparent), ("tracestate", "vendor=1"))
            stub = generation_grpc.GenerationServiceStub(bare)
            await stub.CreateJob(filled(generation.CreateJobRequest), metadata=metadata)
    (span,) = exporting.spans
    assert (span.trace_id, span.parent_id) == ("a" * 32, "b" * 16)
