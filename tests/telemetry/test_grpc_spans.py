"""Which calls become spans, and whose children they are: a real server, a real channel, a real collector."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.trace import SpanKind

from tests.filled import filled
from tests.telemetry.receiver import Received, Receiver, of_job, the_root
from triptych import rpc, telemetry
from triptych.errors import LeaseLost
from triptych.v1 import fleet_service_pb2 as fleet
from triptych.v1 import fleet_service_pb2_grpc as fleet_grpc
from triptych.v1 import generation_service_pb2 as generation
from triptych.v1 import generation_service_pb2_grpc as generation_grpc
from triptych.v1 import ring_service_pb2 as ring
from triptych.v1 import ring_service_pb2_grpc as ring_grpc
from triptych.v1 import worker_service_pb2 as worker
from triptych.v1 import worker_service_pb2_grpc as worker_grpc

JOB = "job-7"


class Generation(generation_grpc.GenerationServiceServicer):
    traceparent = ""

    async def CreateJob(self, request: Any, context: Any) -> Any:
        self.traceparent = telemetry.inject()
        return generation.CreateJobResponse()

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


async def test_a_jobs_calls_form_one_trace(exporting: Receiver) -> None:
    with telemetry.setup("all-in-one"):
        servicer = Generation()
        async with serving(servicer) as address, rpc.open_channel(address) as channel:
            with telemetry.span("generate", kind="client") as span:
                await generation_grpc.GenerationServiceStub(channel).CreateJob(filled(generation.CreateJobRequest))
                span.set_attribute("triptych.job_id", JOB)
            parent = telemetry.extract(servicer.traceparent)
            with telemetry.span("claim request", kind="consumer", parent=parent, job_id=JOB, rank=1):
                await fleet_grpc.FleetServiceStub(channel).StartPhase(filled(fleet.StartPhaseRequest))
                chunks = [
                    r.chunk
                    async for r in worker_grpc.WorkerServiceStub(channel).FetchRoom(filled(worker.FetchRoomRequest))
                ]
                with telemetry.span("publish phase1", kind="producer", job_id=JOB):
                    await ring_grpc.RingServiceStub(channel).Publish(filled(ring.PublishRequest))
    assert chunks == [b"x"] * 3
    spans = of_job(exporting.spans, JOB)
    assert the_root(spans).name == "generate"
    create = named(spans, "CreateJob", SpanKind.SERVER)
    assert create.parent_id == named(spans, "CreateJob", SpanKind.CLIENT).span_id
    claim = named(spans, "claim request", SpanKind.CONSUMER)
    assert claim.parent_id == create.span_id
    assert claim.attributes == {"triptych.job_id": JOB, "triptych.rank": 1}
    for method in ("StartPhase", "FetchRoom"):
        assert named(spans, method, SpanKind.CLIENT).parent_id == claim.span_id
        assert named(spans, method, SpanKind.SERVER).parent_id == named(spans, method, SpanKind.CLIENT).span_id
    assert (
        named(spans, "Publish", SpanKind.CLIENT).parent_id == named(spans, "publish phase1", SpanKind.PRODUCER).span_id
    )
    assert len(spans) == len(exporting.spans) == 11


async def test_polling_and_long_streams_make_no_spans(exporting: Receiver) -> None:
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
                await ring_grpc.RingServiceStub(channel).Claim(filled(ring.ClaimRequest))
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
                assert len([r async for r in listed]) == 1

            await poll()
            await fleet_stub.StartPhase(filled(fleet.StartPhaseRequest))  # a job's call, but outside of any job's trace
            with telemetry.span("a job"):
                await poll()
    assert [span.name for span in exporting.spans] == ["a job"]


async def test_a_call_without_a_trace_begins_one_at_the_controller(exporting: Receiver) -> None:
    servicer = Generation()
    with telemetry.setup("controller"):
        async with serving(servicer) as address, grpc.aio.insecure_channel(address) as bare:
            await generation_grpc.GenerationServiceStub(bare).CreateJob(filled(generation.CreateJobRequest))
    root = the_root(exporting.spans)
    assert root.name == "/triptych.v1.GenerationService/CreateJob"
    assert root.trace_id == telemetry.trace_id(telemetry.extract(servicer.traceparent))


async def test_an_error_keeps_its_class_and_marks_both_spans(exporting: Receiver) -> None:
    with telemetry.setup("all-in-one"):
        async with serving(Generation()) as address, rpc.open_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught, telemetry.span("claim phase1", kind="consumer"):
                await fleet_grpc.FleetServiceStub(channel).CompletePhase(filled(fleet.CompletePhaseRequest))
    assert type(rpc.error_from(caught.value)) is LeaseLost
    client = named(exporting.spans, "CompletePhase", SpanKind.CLIENT)
    server = named(exporting.spans, "CompletePhase", SpanKind.SERVER)
    assert client.status_code == 2
    assert client.attributes["rpc.grpc.status_code"] == server.attributes["rpc.grpc.status_code"] == 10
