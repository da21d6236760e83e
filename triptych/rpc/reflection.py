"""Reflection under both of its names, v1 and v1alpha: new tools ask for the first, older ones for the second.

grpcio-reflection serves v1alpha only. v1 has the same messages in another package, so the same servicer answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_SERVICE_V1 = "grpc.reflection.v1.ServerReflection"
SERVICE_NAMES = (_SERVICE_V1, reflection.SERVICE_NAME)


def add_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    """Have the server explain the services of these names, and reflection itself."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*names, *SERVICE_NAMES))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    v1 = grpc.method_handlers_generic_handler(_SERVICE_V1, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((v1,))


def _describe_v1() -> None:
    """Make v1 known to the pool that reflection reads, unless a newer library has."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(_SERVICE_V1)
    except KeyError:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        v1 = text_format.MessageToString(alpha).replace("v1alpha", "v1")
        pool.AddSerializedFile(text_format.Parse(v1, FileDescriptorProto()).SerializeToString())
