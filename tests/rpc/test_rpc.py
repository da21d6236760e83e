"""Errors over a real wire: the class that the server raises is the class that the client catches."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.filled import filled
from triptych import errors, rpc
from triptych.rpc.status import CLASS_BY_REASON, ending_of, status_of
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc
from triptych_client.retry import is_transient

CLASSES = list(CLASS_BY_REASON.values())


def make(cls: type[errors.TriptychError]) -> errors.TriptychError:
    if cls is errors.InvalidRequest:
        return errors.InvalidRequest("height", 7, "a multiple of 8")
    if cls is errors.MissingExtra:
        return errors.MissingExtra("torch", "serve", "running")
    return cls("what happened, in one sentence")


class Raising(pb_grpc.WorkerServiceServicer):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        raise self.error

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Any) -> Any:
        yield pb.FetchRoomResponse(chunk=b"first")
        raise self.error


async def raised_by(error: BaseException) -> tuple[grpc.aio.AioRpcError, grpc.aio.AioRpcError]:
    service = (pb_grpc.add_WorkerServiceServicer_to_server, Raising(error), "triptych.v1.WorkerService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    try:
        async with rpc.open_channel(server.address) as channel:
            stub = pb_grpc.WorkerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as unary:
                await stub.GetWorker(pb.GetWorkerRequest(), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as stream:
                _ = [chunk async for chunk in stub.FetchRoom(filled(pb.FetchRoomRequest), timeout=10)]
            return unary.value, stream.value
    finally:
        await server.stop(0)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
async def test_every_error_comes_back_as_itself(cls: type[errors.TriptychError]) -> None:
    error = make(cls)
    for caught in await raised_by(error):
        assert caught.code() == status_of(error)
        restored = rpc.error_from(caught)
        assert str(restored) == str(error)
        assert isinstance(restored, cls)


async def test_a_bug_is_internal_and_keeps_its_text_to_itself() -> None:
    for caught in await raised_by(RuntimeError("the prompt was: a secret")):
        assert caught.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.details() or "")
        assert "RuntimeError" in (caught.details() or "")
        assert type(rpc.error_from(caught)) is errors.TriptychError, "nothing to retry"


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, errors.WrongState),
        (grpc.StatusCode.PERMISSION_DENIED, errors.NotAllowed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Full),
    ],
)
def test_a_status_without_a_class_is_the_plainest_error_of_its_kind(
    status: grpc.StatusCode, cls: type[errors.TriptychError]
) -> None:
    """A proxy refuses in its own words."""
    nothing = grpc.aio.Metadata()
    assert type(rpc.error_from(grpc.aio.AioRpcError(status, nothing, nothing, "no"))) is cls


async def test_a_taken_port_is_an_error() -> None:
    server = await rpc.start_server("127.0.0.1:0", [])
    try:
        with pytest.raises(errors.InvalidRequest, match="a free port"):
            await rpc.start_server(server.address, [])
    finally:
        await server.stop(0)


@pytest.mark.parametrize("address", ["", "7070", "host:", "host:port"])
async def test_a_bad_address_is_an_error(address: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="host:port"):
        await rpc.start_server(address, [])


async def test_health_follows_serving() -> None:
    server = await rpc.start_server("127.0.0.1:0", [], not_serving=[rpc.WHOLE])
    try:
        async with rpc.open_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for serving, expected in ((None, "NOT_SERVING"), (True, "SERVING"), (False, "NOT_SERVING")):
                if serving is not None:
                    await server.set_serving(serving)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == expected
    finally:
        await server.stop(0)


def test_a_connection_that_breaks_within_a_message_is_a_connection_that_breaks() -> None:
    nothing = grpc.aio.Metadata()
    broken = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "Internal error from Core")
    assert isinstance(rpc.error_from(broken), errors.Unavailable)
    assert is_transient(broken)
    other = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "internal error (KeyError)")
    assert type(rpc.error_from(other)) is errors.TriptychError
    assert not is_transient(other)


def test_what_a_stopping_server_leaves_behind_is_no_cancelled_job() -> None:
    """A worker's claim that comes too late is told CANCELLED by gRPC, and may not end the worker."""
    nothing = grpc.aio.Metadata()
    left = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "CANCELLED")
    assert isinstance(rpc.error_from(left), errors.Unavailable)
    assert is_transient(left)
    code, message, trailing = ending_of(errors.JobCancelled("the job was cancelled"))
    told = grpc.aio.AioRpcError(code, nothing, grpc.aio.Metadata(*trailing), message)
    assert isinstance(rpc.error_from(told), errors.JobCancelled)
    assert not is_transient(told)


GARBAGE = b"\xff\xff\xff"
METHODS = [
    "/triptych.v1.WorkerService/GetWorker",
    "/triptych.v1.WorkerService/FetchRoom",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message_are_the_callers_mistake(method: str) -> None:
    """Not INTERNAL, which gRPC makes of them by itself. As the first message and as a later one."""
    service = (pb_grpc.add_WorkerServiceServicer_to_server, Raising(RuntimeError()), "triptych.v1.WorkerService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.stream_stream(method)(iter([GARBAGE]), timeout=10).read()
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert isinstance(rpc.error_from(refused.value), errors.InvalidRequest)
            if "Reflection" in method:
                call = channel.stream_stream(method)(iter([b"", GARBAGE]), timeout=10)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    _ = [answer async for answer in call]
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop(0)


async def test_health_is_watched_as_before() -> None:
    server = await rpc.start_server("127.0.0.1:0", [])
    try:
        async with rpc.open_channel(server.address) as channel:
            call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
            assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
            await server.set_serving(False)
            assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            call.cancel()
    finally:
        await server.stop(0)


async def test_what_is_uninterrupted_ends_although_its_caller_has_gone() -> None:
    steps = []

    class Changing(pb_grpc.WorkerServiceServicer):
        @rpc.uninterrupted
        async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
            steps.append("begun")
            await go_on.wait()
            steps.append("ended")
            return pb.GetWorkerResponse()

    go_on = asyncio.Event()
    service = (pb_grpc.add_WorkerServiceServicer_to_server, Changing(), "triptych.v1.WorkerService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    try:
        async with rpc.open_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await pb_grpc.WorkerServiceStub(channel).GetWorker(pb.GetWorkerRequest(), timeout=0.3)
        assert steps == ["begun"]
        go_on.set()
        async with asyncio.timeout(10):
            while len(steps) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await server.stop(0)
