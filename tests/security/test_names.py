"""Whoever is somebody else has another name; who has none is no client."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from tests.filled import filled
from tests.fleet.processes import ROLES, Fleet
from tests.security.conftest import Guarded
from tests.security.papers import issue
from tests.security.test_certificates import folder as folder
from tests.security.test_certificates import name_of, serving
from tests.security.test_strangers import channel_to
from triptych.environment import ClientAccess
from triptych.errors import NotAllowed, NotFound, Unauthenticated
from triptych.security import auth, tokens
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych_client import Client
from triptych_client.retry import RetryPolicy

CLIENT, ADMIN = "spiffe://triptych/client", "spiffe://triptych/admin"

NAMELESS: list[tuple[str, list[str]]] = [
    ("no common name", []),
    ("two of them", ["al", "ice"]),
    ("twice the same", ["alice", "alice"]),
    ("a kind of its own", ["token:alice"]),
    ("a colon", ["alice:"]),
    ("a space", ["alice "]),
    ("a line's end", ["alice\n"]),
    ("a NUL", ["alice\0x"]),
    ("Cyrillic that looks like it", ["аlice"]),
    ("wide letters", ["ａlice"]),
    ("an invisible one", ["ali\u200bce"]),
    ("the longest that X.509 has room for, and no letter first", ["." * 64]),
]


@pytest.mark.parametrize("role", [CLIENT, ADMIN])
@pytest.mark.parametrize(("what", "names"), NAMELESS, ids=[what for what, _ in NAMELESS])
async def test_a_client_that_its_certificate_does_not_name_is_refused(
    folder: Path, tmp_path: Path, what: str, names: list[str], role: str
) -> None:
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        paper = issue(folder, tmp_path / "paper", names, [role])
        with pytest.raises(Unauthenticated, match=r"common name \(CN\)"):
            await name_of(server.address, paper)


async def test_the_name_is_the_common_name_and_the_role_the_spiffe_id(folder: Path, tmp_path: Path) -> None:
    """A renewed certificate is the same client; other roles, other SPIFFE ids of ours, and two of them, are none."""
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        for number, name in enumerate(("alice", "alice", "Alice", "a" * 64, "alice@example.org")):
            paper = issue(folder, tmp_path / f"paper-{number}", [name], [CLIENT])
            assert await name_of(server.address, paper) == f"cert:{name}"
        assert await name_of(server.address, issue(folder, tmp_path / "admin", ["alice"], [ADMIN])) == "cert:alice"
        for number, uris in enumerate(
            ([], [CLIENT, ADMIN], [f"{CLIENT}/alice"], ["spiffe://other/client"], [f"{ADMIN}\0/x"])
        ):
            with pytest.raises(Unauthenticated):
                await name_of(server.address, issue(folder, tmp_path / f"none-{number}", ["alice"], uris))


async def test_services_need_no_common_name(folder: Path, tmp_path: Path) -> None:
    """As cert-manager gives them none; and what they are called by others is no name of a client."""
    async with serving(auth.open_security(str(folder / "controller"), "")) as server:
        for number, names in enumerate(([], ["alice"])):
            paper = issue(folder, tmp_path / f"paper-{number}", names, ["spiffe://triptych/encoder"])
            assert await name_of(server.address, paper) == "service:encoder"


async def test_certificate_and_token_are_not_added_up(folder: Path, tmp_path: Path) -> None:
    """The token says who calls and what it may: not an administrator's rights in a client's name, or the reverse."""
    file = tmp_path / "tokens.toml"
    submits = tokens.add(file, "alice", ["submit"])
    security = auth.open_security(str(folder / "controller"), str(file))
    async with serving(security, "127.0.0.1:0") as server:
        admin = issue(folder, tmp_path / "admin", ["alice"], [ADMIN])
        assert await name_of(server.address, admin) == "cert:alice"
        with pytest.raises(NotAllowed, match="token:alice"):
            await name_of(server.address, admin, submits)


def client_by(guarded: Guarded, tls: Path) -> Client:
    return Client(guarded.fleet.endpoint, RetryPolicy(total_s_max=60.0), ClientAccess(tls=str(tls)))


def test_a_certificates_jobs_are_not_another_certificates_nor_a_tokens(guarded: Guarded, tmp_path: Path) -> None:
    """B, a namesake by token, and a look-alike see nothing of A's; A with a renewed certificate sees all."""
    alice = issue(guarded.certs, tmp_path / "alice", ["alice"], [CLIENT])
    again = issue(guarded.certs, tmp_path / "again", ["alice"], [CLIENT])
    bob = issue(guarded.certs, tmp_path / "bob", ["bob"], [CLIENT])
    by_token = Client(
        guarded.fleet.client_addresses["controller"], RetryPolicy(total_s_max=60.0), guarded.access("alice")
    )
    with client_by(guarded, alice) as first, client_by(guarded, bob) as other, by_token, client_by(guarded, again) as a:
        job = first.create_job("a cat", request_id="namesakes", num_inference_steps=200)
        assert job.client == "cert:alice"
        for stranger in (other, by_token):
            assert job.job_id not in {listed.job_id for listed in stranger.list_jobs()}
            assert stranger.create_job("a dog", request_id="namesakes").job_id != job.job_id
            for call in (stranger.get_job, stranger.cancel_job, lambda j, s=stranger: list(s.watch_job(j))):
                with pytest.raises(NotFound):
                    call(job.job_id)
        assert a.create_job("a cat", request_id="namesakes", num_inference_steps=200).job_id == job.job_id
        assert a.cancel_job(job.job_id).job_id == job.job_id


NO_NAMES = [
    "",
    "alice",
    "service:encoder",
    "cert:",
    "cert:а",
    "token:a b",
    "cert:token:alice",
    "x:alice",
    "token:alice\n",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_an_encoder_names_clients_by_their_whole_names(guarded: Guarded, name: str) -> None:
    with channel_to(guarded, "controller", guarded.certs / "encoder") as channel:
        request = filled(fleet_pb.StartDirectJobRequest)
        request.client = name
        with pytest.raises(grpc.RpcError) as caught:
            FleetServiceStub(channel).StartDirectJob(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "cert:NAME or token:NAME" in caught.value.details()  # type: ignore[attr-defined]


def test_jobs_from_before_callers_were_asked_are_for_administrators(tmp_path: Path) -> None:
    """A fleet that was open gets tokens: nobody inherits what nobody owned, and it is not lost either."""
    fakes = {f"{role}-0": ("--fake-stage-seconds", "0.05") for role in ROLES}
    fleet = Fleet(tmp_path / "fleet", "fake", flags_by_name=fakes, worker_flags=("--mover", "local"))
    file = tmp_path / "tokens.toml"
    access = {name: ClientAccess(token=tokens.add(file, name, [name])) for name in ("read", "admin")}
    with fleet:
        with fleet.client() as anyone:
            job_id = anyone.generate("a cat", tmp_path / "out.npy").job.job_id
        fleet.kill("controller")
        fleet.flags_by_name = {**fakes, "controller": ("--tokens", str(file))}
        fleet.start("controller")
        policy = RetryPolicy(total_s_max=60.0)
        with (
            Client(fleet.endpoint, policy, access["read"]) as reader,
            Client(fleet.endpoint, policy, access["admin"]) as admin,
        ):
            assert list(reader.list_jobs()) == []
            with pytest.raises(NotFound):
                reader.get_job(job_id)
            assert admin.get_job(job_id).client == ""
            assert admin.download_result(job_id, tmp_path / "again.npy")
    shutil.rmtree(tmp_path / "fleet", ignore_errors=True)
