"""Bounds on messages are asked of their bytes: nothing is built of a message that is refused."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.filled import filled
from triptych import limits, rpc
from triptych.errors import InvalidRequest
from triptych.rpc.options import MESSAGE_BYTES_MAX
from triptych.rpc.requests import check_size
from triptych.security.rules import RULES, SMALL_BYTES_MAX
from triptych.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1 import generation_service_pb2_grpc as pb_grpc
from triptych.v1.job_pb2 import GenerationRequest, Media

CREATE = "/triptych.v1.GenerationService/CreateJob"
NESTED = GenerationRequest()
NESTED.parameters.update({"sigmas": [[[0.5] * 100] * 100] * 100})
REFUSED = re.compile(r"request is '\d+ bytes( without its files)?'; accepted: at most \d+ bytes")


class Front(pb_grpc.GenerationServiceServicer, fleet_service_pb2_grpc.FleetServiceServicer):
    """Keeps the request, and hands it out as the controller does."""

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        self.kept = request.request
        return pb.CreateJobResponse()

    async def StartPhase(self, request: Any, context: Any) -> fleet_service_pb2.StartPhaseResponse:
        return fleet_service_pb2.StartPhaseResponse(request=self.kept)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        return pb.ListJobsResponse()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    front = Front()
    server = await rpc.start_server(
        "127.0.0.1:0",
        [
            (pb_grpc.add_GenerationServiceServicer_to_server, front, "triptych.v1.GenerationService"),
            (fleet_service_pb2_grpc.add_FleetServiceServicer_to_server, front, "triptych.v1.FleetService"),
        ],
    )
    async with rpc.open_channel(server.address) as opened:
        yield opened
    await server.stop(0)


def create(request: GenerationRequest) -> bytes:
    return pb.CreateJobRequest(request=request).SerializeToString()


async def refusal(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(method)(data, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


@pytest.mark.large_messages
async def test_parameters_of_48_mb_cost_nothing(channel: grpc.aio.Channel) -> None:
    data = create(NESTED) * 5  # a message that comes several times in one is merged
    assert len(data) > 48e6
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert REFUSED.fullmatch(await refusal(channel, CREATE, data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 * 1024, "copies by both sides of gRPC"


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("/triptych.v1.GenerationService/ListJobs", pb.ListJobsRequest(states=[1] * 100_000).SerializeToString()),
        ("/triptych.v1.GenerationService/ListJobs", b"\x9a\x06\x84\x80\x04" + bytes(2**16 + 4)),  # an unknown field
        (CREATE, create(GenerationRequest(prompt="x" * 2**21))),
        (CREATE, create(GenerationRequest(media=[Media(name="x" * 2**21)]))),
    ],
    ids=["a list", "an unknown field", "a text", "a name"],
)
async def test_what_is_no_file_is_bounded(channel: grpc.aio.Channel, method: str, data: bytes) -> None:
    assert REFUSED.fullmatch(await refusal(channel, method, data))


@pytest.mark.large_messages
async def test_the_largest_request_can_be_handed_out(channel: grpc.aio.Channel) -> None:
    request = GenerationRequest(prompt="a circle")
    request.media.add(name="image", data=bytes(limits.REQUEST_BYTES_MAX))
    await pb_grpc.GenerationServiceStub(channel).CreateJob(pb.CreateJobRequest(request=request), timeout=30)
    stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
    started = await stub.StartPhase(filled(fleet_service_pb2.StartPhaseRequest), timeout=30)
    assert started.request == request
    request.media.add(name="image", data=bytes(2**20))
    assert REFUSED.fullmatch(await refusal(channel, CREATE, create(request)))


@pytest.mark.parametrize(
    "data",
    [
        create(GenerationRequest(media=[Media(name="image")] * 600_000)),
        b"\x08\x00" * 2**20,
        b"\x12\xff\xff\xff\xff\x0f" + bytes(2**21),
        b"\xff" * 2**21,
        b"\x0b" * 2**21,
    ],
    ids=["fields in parts", "fields", "a length beyond the end", "a number without end", "groups"],
)
def test_the_walk_is_bounded(data: bytes) -> None:
    started_s = time.thread_time()
    with pytest.raises(InvalidRequest):
        check_size(CREATE, data, pb.CreateJobRequest.DESCRIPTOR)
    assert time.thread_time() - started_s < 0.05


def test_the_bounds_of_the_protos_fit_the_largest_request() -> None:
    around_bytes = {
        CREATE: 64 * 2**10,
        "/triptych.v1.EncoderService/Generate": 64 * 2**10,
        "/triptych.v1.FleetService/StartDirectJob": 2**20,
    }
    for path, more_bytes in around_bytes.items():
        assert RULES[path].bytes_max == limits.REQUEST_BYTES_MAX + more_bytes
    assert all(rules.plain_bytes_max <= rules.bytes_max < MESSAGE_BYTES_MAX for rules in RULES.values())
    assert {path for path, rules in RULES.items() if rules.bytes_max != SMALL_BYTES_MAX} == {
        *around_bytes,
        "/triptych.v1.FleetService/RegisterWorker",
        "/triptych.v1.FleetService/CompletePhase",
        "/triptych.v1.FleetService/Heartbeat",
        "/triptych.v1.FileService/UploadFile",
        "/triptych.v1.TextEncoderService/Encode",
    }
