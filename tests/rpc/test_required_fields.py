"""Every method of the contract says what it can't do without, and refuses a call that leaves it out."""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.filled import filled
from triptych import rpc
from triptych.rpc.requests import required_fields
from triptych.security.rules import RULES

FILES = (
    *(
        "v1.generation_service",
        "v1.file_service",
        "v1.fleet_service",
        "v1.ring_service",
        "v1.worker_service",
        "v1.encoder_service",
        "v1.text_encoder_service",
    ),
    "externalscaler.externalscaler",
)
SCALER = {"IsActive", "StreamIsActive", "GetMetricSpec", "StreamMetricSpec", "GetMetrics"}
"""What KEDA calls. It puts all it asks for into one map, whose keys the servicer checks."""
DESCRIBE = {"DescribeModel", "DescribeTextEncoder"}
TAKES_NOTHING = {"ListJobs", "GetFleet", "Drain", "GetWorker", "UploadFile", *DESCRIBE, *SCALER}
"""What may be called with an empty message."""
ONE_OF_TWO = {"UnregisterWorker"}
PASSED = grpc.StatusCode.INTERNAL
"""How a call of a generated servicer's method ends, which raises NotImplementedError."""
UNKNOWN = b"\x98\x3f\x01" + b"\xa2\x3f\x05job-1"
"""Fields 1011 and 1012, which no message has: what a client of another contract may send."""


def module(name: str, kind: str) -> Any:
    return importlib.import_module(f"triptych.{name}_{kind}")


SERVICES = [next(iter(module(name, "pb2").DESCRIPTOR.services_by_name.values())) for name in FILES]
METHODS = {f"/{one.full_name}/{method.name}": method for one in SERVICES for method in one.methods}


def services() -> list[rpc.Service]:
    """Every service, as protoc generates it: its methods raise NotImplementedError."""
    found: list[rpc.Service] = []
    for name, service in zip(FILES, SERVICES, strict=True):
        generated = module(name, "pb2_grpc")
        servicer = getattr(generated, f"{service.name}Servicer")()
        found.append((getattr(generated, f"add_{service.name}Servicer_to_server"), servicer, service.full_name))
    return found


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A server that can do nothing: what comes past the edge meets a method that isn't there."""
    server = await rpc.start_server("127.0.0.1:0", services())
    yield server.address
    await server.stop(0)


async def call(address: str, path: str, method: MethodDescriptor, data: bytes) -> tuple[grpc.StatusCode, str]:
    """How a call with these bytes ends."""
    async with rpc.open_channel(address) as channel:
        try:
            if method.client_streaming:
                stream = channel.stream_stream(path)(iter([data]), timeout=10)
                async for _ in stream:
                    pass
            elif method.server_streaming:
                async for _ in channel.unary_stream(path)(data, timeout=10):
                    pass
            else:
                await channel.unary_unary(path)(data, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def test_what_takes_an_empty_message() -> None:
    assert set(METHODS) == set(RULES)
    empty = {method.name for method in METHODS.values() if not required_fields(method.input_type)}
    assert empty == TAKES_NOTHING | ONE_OF_TWO


@pytest.mark.parametrize("path", [path for path, method in METHODS.items() if not method.client_streaming])
@pytest.mark.parametrize("data", [b"", UNKNOWN], ids=["empty", "fields of another contract"])
async def test_a_call_without_them_is_refused_by_name(address: str, path: str, data: bytes) -> None:
    method = METHODS[path]
    required = required_fields(method.input_type)
    code, details = await call(address, path, method, data)
    if not required:
        assert code is PASSED
        return
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.match(rf"{required[0].name} is (''|0); accepted: a value", details)
    assert ("keepCase" in details) is (data == b""), "who sends something is told of that field only"


@pytest.mark.parametrize("path", [path for path, method in METHODS.items() if not method.client_streaming])
async def test_one_that_sets_them_comes_past(address: str, path: str) -> None:
    method = METHODS[path]
    message = filled(GetMessageClass(method.input_type))
    code, _details = await call(address, path, method, message.SerializeToString())
    assert code is PASSED
