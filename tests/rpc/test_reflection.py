"""Reflection explains a server under its present name as under its old one."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.rpc.test_required_fields import services
from triptych import rpc
from triptych.v1 import generation_service_pb2


async def ask(address: str, version: str, request: ServerReflectionRequest) -> ServerReflectionResponse:
    """One question, as a tool asks that knows this version only."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )(iter([request]), timeout=10)
        return await call.read()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_both_versions_tell_the_same(version: str) -> None:
    server = await rpc.start_server("127.0.0.1:0", services())
    try:
        listed = await ask(server.address, version, ServerReflectionRequest(list_services=""))
        names = {service.name for service in listed.list_services_response.service}
        for name in ("triptych.v1.GenerationService", f"grpc.reflection.{version}.ServerReflection"):
            assert name in names
            found = await ask(server.address, version, ServerReflectionRequest(file_containing_symbol=name))
            files = [
                FileDescriptorProto.FromString(raw) for raw in found.file_descriptor_response.file_descriptor_proto
            ]
            package, _, service = name.rpartition(".")
            assert any(file.package == package and service in [s.name for s in file.service] for file in files)
    finally:
        await server.stop(0)


def test_generated_code_has_a_place_in_every_language() -> None:
    options = generation_service_pb2.DESCRIPTOR.GetOptions()
    assert options.go_package == "triptych/v1;triptychv1"
    assert (options.java_package, options.java_multiple_files) == ("triptych.v1", True)
    assert options.csharp_namespace == "Triptych.V1"
