"""Who has neither certificate nor token gets nothing: asked for every RPC that the servers themselves list."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fleet.processes import ROLES, TEXT_ENCODER
from tests.security.conftest import Guarded
from triptych.security.certificates import Certificates
from triptych.security.rules import RULES

PROCESSES = ("controller", *(f"{role}-0" for role in (*ROLES, TEXT_ENCODER)))
SERVICES = {
    "controller": {"GenerationService", "FileService", "FleetService", "RingService"},
    "encoder-0": {"WorkerService", "EncoderService"},
    "transformer-0": {"WorkerService"},
    "decoder-0": {"WorkerService"},
    "text_encoder-0": {"WorkerService", "TextEncoderService"},
}


def channel_to(guarded: Guarded, name: str, tls: Path | None = None) -> grpc.Channel:
    """With a certificate to the port of certificates, else to that of tokens."""
    credentials = Certificates(tls or guarded.anybody).channel_credentials()
    addresses = guarded.fleet.addresses if tls is not None else guarded.fleet.client_addresses
    return grpc.secure_channel(addresses[name], credentials)


def methods_of(guarded: Guarded, name: str) -> list[tuple[str, bool]]:
    """Every method that a process lists by reflection, and whether it takes a stream. Asked by an administrator."""
    metadata = (("authorization", f"Bearer {guarded.tokens['root']}"),)
    with channel_to(guarded, name) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(**request: str) -> reflection_pb2.ServerReflectionResponse:
            call = stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=10, metadata=metadata
            )
            return next(iter(call))

        services = [service.name for service in ask(list_services="").list_services_response.service]
        files: dict[str, FileDescriptorProto] = {}
        for service in services:
            for raw in ask(file_containing_symbol=service).file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(raw)
                files[file.name] = file
    assert {service.rpartition(".")[2] for service in services} > SERVICES[name]
    return sorted(_methods(files, services))


def _methods(files: dict[str, FileDescriptorProto], services: list[str]) -> Iterator[tuple[str, bool]]:
    pool = DescriptorPool()
    waiting = dict(files)
    while waiting:
        ready = [f for f in waiting.values() if not set(f.dependency) & waiting.keys()]
        for file in ready:
            pool.Add(file)  # type: ignore[attr-defined]
            del waiting[file.name]
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", bool(method.client_streaming)


def status_of(channel: grpc.Channel, method: str, takes_stream: bool, token: str = "") -> grpc.StatusCode:
    """The status of a call with an empty message."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    kind = channel.stream_stream if takes_stream else channel.unary_stream
    call = kind(method, request_serializer=None, response_deserializer=None)
    try:
        for _response in call(iter([b""]) if takes_stream else b"", timeout=10, metadata=metadata):
            pass
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]
    return grpc.StatusCode.OK


@pytest.mark.parametrize("name", PROCESSES)
def test_a_stranger_gets_unauthenticated_from_every_rpc_but_health(guarded: Guarded, name: str) -> None:
    methods = methods_of(guarded, name)
    assert len(methods) >= 6
    with channel_to(guarded, name) as channel:
        for method, takes_stream in methods:
            for token in ("", "triptych_" + "A" * 43):
                if method.startswith("/grpc.health.v1.Health/"):
                    continue
                found = status_of(channel, method, takes_stream, token)
                assert found is grpc.StatusCode.UNAUTHENTICATED, f"{method}: {found}"
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", PROCESSES)
def test_a_certificate_without_a_role_gets_the_same(guarded: Guarded, name: str, tmp_path: Path) -> None:
    """It is of the right authority, so the handshake succeeds; and that is all."""
    from triptych_client import authority

    folder = tmp_path / "certs"
    shutil.copytree(guarded.certs / "ca", folder / "ca")
    shutil.copytree(guarded.certs / "controller", folder / "controller")
    authority.renew(folder, roles=("visitor",))
    with channel_to(guarded, name, folder / "visitor") as channel:
        for method, takes_stream in methods_of(guarded, name):
            if not method.startswith("/grpc.health.v1.Health/"):
                assert status_of(channel, method, takes_stream) is grpc.StatusCode.UNAUTHENTICATED, method


@pytest.mark.parametrize("name", PROCESSES)
def test_the_port_of_certificates_answers_nobody_without(guarded: Guarded, name: str) -> None:
    """Not even health: the handshake fails."""
    with grpc.insecure_channel(guarded.fleet.addresses[name]) as plain:
        assert status_of(plain, "/grpc.health.v1.Health/Check", False) is grpc.StatusCode.UNAVAILABLE
    credentials = Certificates(guarded.anybody).channel_credentials()
    with grpc.secure_channel(guarded.fleet.addresses[name], credentials) as channel:
        assert status_of(channel, "/grpc.health.v1.Health/Check", False) is grpc.StatusCode.UNAVAILABLE


def test_every_method_of_ours_is_in_the_table(guarded: Guarded) -> None:
    """One that is forgotten would be for administrators only: safe, but useless."""
    listed = {method for name in PROCESSES for method, _stream in methods_of(guarded, name)}
    ours = {method for method in listed if method.startswith(("/triptych.", "/externalscaler."))}
    assert ours == RULES.keys()


def test_bad_metadata_is_refused_in_a_sentence(guarded: Guarded) -> None:
    root = guarded.tokens["root"]
    with channel_to(guarded, "controller") as channel:
        call = channel.unary_unary("/triptych.v1.FleetService/GetFleet")
        for values in (["Basic x"], ["Bearer "], [root], [f"Bearer {root}", f"Bearer {root}"], ["Bearer x" * 20]):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10, metadata=[("authorization", value) for value in values])
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
            assert root not in caught.value.details()  # type: ignore[attr-defined]
        call(b"", timeout=10, metadata=[("authorization", f"bearer {root}")])
