"""A worker that its controller doesn't reach at its address is refused when it registers, with a sentence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from services.controller.call_back import CALL_BACK_TIMEOUT_S, CallBack
from services.controller.journal import Journal
from services.worker.servicers import WORKER_SERVICE
from tests.fleet.answering import answering
from tests.messages import registration
from triptych import rpc
from triptych.errors import (
    Full,
    InvalidRequest,
    NotAllowed,
    NotFound,
    TriptychError,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from triptych.security import auth
from triptych.v1 import worker_service_pb2_grpc
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.worker_service_pb2 import ConfirmInstanceRequest, ConfirmInstanceResponse
from triptych_client import authority


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with Journal(tmp_path / "state") as opened:
        yield opened


@contextmanager
def bound(*, listens: bool) -> Iterator[str]:
    """The address of a port that is taken; one that listens accepts connections and never says a word."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def refusal_of(
    journal: Journal, address: str, security: auth.Security = auth.OPEN, timeout_s: float = CALL_BACK_TIMEOUT_S
) -> TriptychError:
    """What a worker at this address is told."""
    with pytest.raises(TriptychError) as caught:
        await CallBack(journal, security, timeout_s)(registration("me", ROLE_ENCODER, address=address))
    host = address.rpartition(":")[0]
    assert str(caught.value).startswith(f"advertise_host is {host!r}; accepted: this worker's name or address")
    return caught.value


async def test_one_that_answers_is_taken(journal: Journal) -> None:
    with answering() as address:
        await CallBack(journal, auth.OPEN)(registration("me", ROLE_ENCODER, address=address))


async def test_where_nothing_listens(journal: Journal) -> None:
    with bound(listens=False) as address:
        error = await refusal_of(journal, address)
    assert isinstance(error, InvalidRequest)
    assert "the controller found nothing that listens" in str(error)


async def test_a_name_that_does_not_resolve(journal: Journal) -> None:
    error = await refusal_of(journal, "no-such-host.invalid:7000")
    assert "no address of that name" in str(error)


async def test_a_server_that_is_no_worker(journal: Journal) -> None:
    server = await rpc.start_server("127.0.0.1:0", [])
    error = await refusal_of(journal, server.address)
    await server.stop(0)
    assert isinstance(error, InvalidRequest)
    assert "another process than this worker" in str(error)


async def test_a_worker_that_cannot_confirm_is_taken(journal: Journal) -> None:
    """One of the version before: its service doesn't have the method yet."""
    older = worker_service_pb2_grpc.WorkerServiceServicer()

    def add(servicer: object, server: grpc.aio.Server) -> None:
        """Methods of the service as it was, without the newest."""
        handler = grpc.unary_unary_rpc_method_handler(servicer.GetWorker)  # type: ignore[attr-defined]
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(WORKER_SERVICE, {"GetWorker": handler}),))

    server = await rpc.start_server("127.0.0.1:0", [(add, older, WORKER_SERVICE)])
    await CallBack(journal, auth.OPEN)(registration("me", ROLE_ENCODER, address=server.address))
    await server.stop(0)


class Failing(worker_service_pb2_grpc.WorkerServiceServicer):
    """A worker that answers with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def ConfirmInstance(self, request: ConfirmInstanceRequest, context: rpc.Context) -> ConfirmInstanceResponse:
        raise self._error


FAILURES = {
    "another instance": (NotFound("this is another instance"), InvalidRequest, "another process than this worker"),
    "busy": (Full("no space"), Unreachable, "a server that says: no space"),
    "not allowed": (NotAllowed("'x' is no controller"), Unreachable, "'x' is no controller"),
    "unknown caller": (Unauthenticated("no token"), Unreachable, "a server that says: no token"),
    "broken": (KeyError("x"), Unreachable, "a server that says: internal error (KeyError)"),
    "not ready": (Unavailable("it loads"), Unreachable, "it loads"),
}


@pytest.mark.parametrize(("failure", "kind", "words"), FAILURES.values(), ids=FAILURES)
async def test_only_another_instance_is_refused_for_good(
    journal: Journal, failure: Exception, kind: type[TriptychError], words: str
) -> None:
    service = (worker_service_pb2_grpc.add_WorkerServiceServicer_to_server, Failing(failure), WORKER_SERVICE)
    server = await rpc.start_server("127.0.0.1:0", [service])
    error = await refusal_of(journal, server.address)
    await server.stop(0)
    assert type(error) is kind
    assert words in str(error)


async def test_silence_is_bounded_and_may_end(journal: Journal) -> None:
    """The worker asks again: so the error isn't the one for what never will do."""
    with bound(listens=True) as address:
        error = await asyncio.wait_for(refusal_of(journal, address, timeout_s=0.5), 20)
    assert isinstance(error, Unreachable)
    assert "no answer within 0.5 s: let the controller and the other workers through to that port" in str(error)


async def test_a_certificate_of_another_authority(journal: Journal, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        authority.init(tmp_path / name, ["127.0.0.1"])
    security = auth.open_security(str(tmp_path / "ours" / "controller"), "")
    with answering(tmp_path / "ours" / "encoder") as address:
        await CallBack(journal, security)(registration("me", ROLE_ENCODER, address=address))
    with answering(tmp_path / "theirs" / "encoder") as address:
        error = await refusal_of(journal, address, security)
    assert isinstance(error, InvalidRequest)
    assert "a server with which TLS fails" in str(error)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


async def test_a_certificate_for_another_name(journal: Journal, tmp_path: Path) -> None:
    authority.init(tmp_path / "certs", ["somewhere.example"])
    security = auth.open_security(str(tmp_path / "certs" / "controller"), "")
    with answering(tmp_path / "certs" / "encoder") as address:
        error = await refusal_of(journal, address, security)
    assert isinstance(error, InvalidRequest)
    assert "a server with which TLS fails" in str(error)


async def test_a_connection_that_breaks_under_tls_may_hold_next_time(journal: Journal, tmp_path: Path) -> None:
    """As where a worker or a proxy is just starting."""
    authority.init(tmp_path / "certs", ["127.0.0.1"])
    security = auth.open_security(str(tmp_path / "certs" / "controller"), "")

    def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        error = await refusal_of(journal, f"{host}:{port}", security)
    assert isinstance(error, Unreachable)


async def test_one_that_the_journal_knows_is_not_called(journal: Journal) -> None:
    """As after a controller's restart."""
    await journal.rank_of("me")
    with bound(listens=False) as address:
        await CallBack(journal, auth.OPEN)(registration("me", ROLE_ENCODER, address=address))
