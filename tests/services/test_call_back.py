"""A worker that its controller doesn't reach at its address is refused when it registers, with a sentence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.controller.call_back import CALL_BACK_TIMEOUT_S, CallBack
from services.controller.journal import Journal
from tests.fleet.answering import answering
from tests.messages import registration
from triptych import rpc
from triptych.errors import InvalidRequest, TriptychError, Unreachable
from triptych.security import auth
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
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


async def test_one_that_the_journal_knows_is_not_called(journal: Journal) -> None:
    """As after a controller's restart."""
    await journal.rank_of("me")
    with bound(listens=False) as address:
        await CallBack(journal, auth.OPEN)(registration("me", ROLE_ENCODER, address=address))
