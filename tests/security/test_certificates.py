"""Certificates: made, checked, and taken up anew by servers and channels that run."""

from __future__ import annotations

import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.security.papers import issue
from triptych import rpc
from triptych.errors import InvalidRequest, NotAllowed, Unauthenticated, Unavailable
from triptych.security import auth, identity
from triptych.security.certificates import Certificates, role_and_name
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc
from triptych.v1.worker_pb2 import Worker, WorkerInfo
from triptych_client import authority

HOSTS = ("127.0.0.1", "localhost")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority.init(tmp_path / "certs", HOSTS)
    return tmp_path / "certs"


class Echo(pb_grpc.WorkerServiceServicer):
    """Answers with the caller's name."""

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        return pb.GetWorkerResponse(worker=Worker(info=WorkerInfo(model=identity.caller().name)))


@asynccontextmanager
async def serving(security: auth.Security, client_address: str = "") -> AsyncIterator[rpc.Server]:
    service = (pb_grpc.add_WorkerServiceServicer_to_server, Echo(), "triptych.v1.WorkerService")
    server = await rpc.start_server("127.0.0.1:0", [service], security=security, client_address=client_address)
    try:
        yield server
    finally:
        await server.stop(0)


async def name_at(channel: grpc.aio.Channel) -> str:
    call = pb_grpc.WorkerServiceStub(channel).GetWorker(pb.GetWorkerRequest(), timeout=10)
    return (await rpc.translate(call)).worker.info.model


async def name_of(address: str, tls: Path, token: str = "") -> str:
    async with rpc.open_channel(address, auth.open_security(str(tls), "", token=token)) as channel:
        return await name_at(channel)


def test_files_and_their_modes(folder: Path) -> None:
    for role in authority.HOLDERS:
        assert Certificates(folder / role).has_own
        assert stat.S_IMODE((folder / role / "tls.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "ca" / "tls.key").stat().st_mode) == 0o600
    with pytest.raises(InvalidRequest, match="renew"):
        authority.init(folder, HOSTS)


@pytest.mark.parametrize("host", ["", "a:7070", "http://a", "ü"])
def test_bad_hosts(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidRequest, match="host"):
        authority.init(tmp_path / "x", [host])


@pytest.mark.parametrize("damage", ["missing ca", "missing key", "other key", "no certificate"])
def test_a_set_that_does_not_fit_is_refused(folder: Path, damage: str) -> None:
    encoder = folder / "encoder"
    match damage:
        case "missing ca":
            (encoder / "ca.crt").unlink()
        case "missing key":
            (encoder / "tls.key").unlink()
        case "other key":
            shutil.copy(folder / "decoder" / "tls.key", encoder / "tls.key")
        case "no certificate":
            (encoder / "tls.crt").write_text("hello")
    with pytest.raises(InvalidRequest, match="tls is"):
        Certificates(encoder)


async def test_the_role_decides(folder: Path) -> None:
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        assert await name_of(server.address, folder / "encoder") == "service:encoder"
        assert await name_of(server.address, folder / "client") == "cert:client"
        with pytest.raises(NotAllowed, match="GetWorker"):
            await name_of(server.address, folder / "controller")


async def test_no_certificate_no_connection(folder: Path, tmp_path: Path) -> None:
    """The handshake fails: no call is reached at all. The same for one of another authority."""
    (tmp_path / "anybody").mkdir()
    shutil.copy(folder / "client" / "ca.crt", tmp_path / "anybody")
    authority.init(tmp_path / "others", HOSTS)
    shutil.copy(folder / "client" / "ca.crt", tmp_path / "others" / "client" / "ca.crt")
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        for stranger in (tmp_path / "anybody", tmp_path / "others" / "client"):
            with pytest.raises(Unavailable):
                await name_of(server.address, stranger)
        async with rpc.open_channel(server.address) as plain:
            with pytest.raises(Unavailable):
                await name_at(plain)


async def test_a_server_of_another_authority_or_host_is_not_believed(folder: Path, tmp_path: Path) -> None:
    authority.init(tmp_path / "others", HOSTS)
    authority.init(tmp_path / "elsewhere", ["example.org"])
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        with pytest.raises(Unavailable):
            await name_of(server.address, tmp_path / "others" / "client")
    async with serving(auth.open_security(str(tmp_path / "elsewhere" / "controller"), "")) as server:
        with pytest.raises(Unavailable):
            await name_of(server.address, tmp_path / "elsewhere" / "client")


@pytest.mark.parametrize("role", authority.CALLERS)
async def test_who_may_only_call_does_not_pass_for_a_server(folder: Path, role: str) -> None:
    """A stolen client's certificate, on the right host."""
    async with serving(auth.open_security(str(folder / role), "")) as server:
        with pytest.raises(Unavailable):
            await name_of(server.address, folder / "encoder")


async def test_renewed_files_are_taken_up_without_a_restart(folder: Path, tmp_path: Path) -> None:
    """A server and a channel that run take up another authority's files; the old ones are then worth nothing."""
    old_client = tmp_path / "old"
    shutil.copytree(folder / "client", old_client)
    security = auth.open_security(str(folder / "client"), "")
    async with (
        serving(auth.open_security(str(folder / "controller"), "")) as server,
        rpc.open_channel(server.address, security) as channel,
    ):
        assert await name_at(channel) == "cert:client"
        authority.renew(folder)
        assert await name_at(channel) == "cert:client"
        shutil.rmtree(folder)
        authority.init(folder, HOSTS)
        assert await name_at(channel) == "cert:client"
        assert security.certificates is not None
        assert security.certificates.refresh() == 2
        with pytest.raises(Unavailable):
            await name_of(server.address, old_client)


async def test_a_half_written_set_is_not_taken_up(folder: Path) -> None:
    certificates = Certificates(folder / "client")
    key = (folder / "client" / "tls.key").read_bytes()
    shutil.copy(folder / "decoder" / "tls.key", folder / "client" / "tls.key")
    assert certificates.refresh() == 0
    (folder / "client" / "tls.key").write_bytes(key)
    assert certificates.refresh() == 0, "it is what it was"
    authority.renew(folder)
    assert certificates.refresh() == 1


async def test_the_port_for_tokens(folder: Path, tmp_path: Path) -> None:
    """TLS without a client's certificate: the token says who calls, and without one nobody does."""
    from triptych.security import tokens

    token = tokens.add(tmp_path / "tokens.toml", "alice", ["read"])
    (tmp_path / "anybody").mkdir()
    shutil.copy(folder / "client" / "ca.crt", tmp_path / "anybody")
    security = auth.open_security(str(folder / "controller"), str(tmp_path / "tokens.toml"))
    async with serving(security, "127.0.0.1:0") as server:
        assert await name_of(server.client_address, tmp_path / "anybody", token) == "token:alice"
        assert await name_of(server.address, folder / "encoder", token) == "token:alice", "the token says who calls"
        for wrong in ("", token[:-1]):
            with pytest.raises(Unauthenticated):
                await name_of(server.client_address, tmp_path / "anybody", wrong)


async def test_a_second_port_needs_both(folder: Path) -> None:
    for security in (auth.OPEN, auth.open_security(str(folder / "controller"), "")):
        with pytest.raises(InvalidRequest, match="client_address"):
            async with serving(security, "127.0.0.1:0"):
                pass


@pytest.mark.parametrize("role", authority.CALLERS)
async def test_who_only_calls_cannot_pass_for_a_server(folder: Path, role: str) -> None:
    async with serving(auth.open_security(str(folder / role), "")) as server:
        with pytest.raises(Unavailable):
            await name_of(server.address, folder / "encoder")


@pytest.mark.parametrize(
    ("spiffe_id", "role"),
    [
        ("spiffe://triptych/encoder", "encoder"),
        ("spiffe://triptych/", ""),
        ("spiffe://cluster.local/ns/x/sa/admin", ""),
        ("spiffe://triptych.example/admin", ""),
        ("spiffe://triptych/ns/admin", "ns/admin"),
    ],
)
def test_roles_are_of_our_trust_domain(folder: Path, tmp_path: Path, spiffe_id: str, role: str) -> None:
    """What is no role of the table may nothing, whatever it ends in."""
    paper = issue(folder, tmp_path / "paper", ["somebody"], [spiffe_id])
    assert role_and_name({"x509_pem_cert": [(paper / "tls.crt").read_bytes()]}) == (role, "somebody")
    assert role in ("encoder", "", "ns/admin")
    assert "ns/admin" not in auth.SCOPES_BY_ROLE
