"""Behind a mesh, which encrypts: no certificates of our own, and everybody, workers too, has a token."""

from __future__ import annotations

import shutil
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.e2e.conftest import generate_directly
from tests.filled import filled
from tests.fleet.processes import ROLES, Fleet, free_port
from tests.messages import registration
from tests.security.test_roles import HARMFUL, is_refused, process_of, refusal
from triptych.environment import ClientAccess
from triptych.errors import NotFound, Unauthenticated
from triptych.security import tokens
from triptych.security.rules import RULES
from triptych.v1.dispatch_pb2 import ROLE_DECODER
from triptych.v1.encoder_service_pb2 import GenerateRequest
from triptych.v1.fleet_service_pb2 import CompletePhaseRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_service_pb2 import FetchRoomRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub
from triptych_client import Client
from triptych_client.retry import RetryPolicy

SERVED = {path: rules for path, rules in RULES.items() if process_of(path) != "text_encoder-0"}
"""This fleet has no text encoder."""
CLIENTS = {"alice": ["submit", "read"], "bob": ["submit", "read"], "reader": ["read"], "root": ["admin"]}


def token_of(folder: Path, name: str) -> str:
    """A client's, or a role's."""
    return (folder / f"{name}.token").read_text().strip()


@pytest.fixture(scope="module")
def meshed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Path]]:
    folder = tmp_path_factory.mktemp("meshed")
    file = folder / "tokens.toml"
    for role in ROLES:
        (folder / f"{role}.token").write_text(tokens.add(file, f"{role}s", [role]) + "\n")
    for name, scopes in CLIENTS.items():
        (folder / f"{name}.token").write_text(tokens.add(file, name, scopes))
    shared = ("--tokens", str(file))
    flags = {
        f"{role}-0": (*shared, "--token-file", str(folder / f"{role}.token"), "--fake-stage-seconds", "0.05")
        for role in ROLES
    }
    rpc_only = ("--mover", "rpc")
    port = free_port()
    fleet = Fleet(
        folder / "fleet",
        "fake",
        flags_by_name=flags,
        controller_flags=(*shared, "--metrics-port", str(port)),
        worker_flags=rpc_only,
        access=ClientAccess(token=token_of(folder, "alice")),
    )
    fleet.metrics_port = port  # type: ignore[attr-defined]
    with fleet:
        yield fleet, folder


def test_a_job_with_tokens_only(meshed: tuple[Fleet, Path], tmp_path: Path) -> None:
    fleet, _folder = meshed
    with fleet.client() as client:
        made = client.generate("a cat", tmp_path / "out.npy")
        assert made.job.client == "token:alice"


def test_a_stranger_gets_nothing(meshed: tuple[Fleet, Path]) -> None:
    fleet, _folder = meshed
    for access in (ClientAccess(), ClientAccess(token="triptych_x")):
        with (
            Client(fleet.endpoint, RetryPolicy(total_s_max=60.0), access) as client,
            pytest.raises(Unauthenticated, match="token"),
        ):
            client.get_fleet()


def test_a_workers_token_is_good_for_its_role_only(meshed: tuple[Fleet, Path]) -> None:
    fleet, folder = meshed
    metadata = (("authorization", f"Bearer {(folder / 'encoder.token').read_text().strip()}"),)
    with grpc.insecure_channel(fleet.endpoint) as channel:
        stub = FleetServiceStub(channel)
        register = registration("x", ROLE_DECODER)
        complete = filled(CompletePhaseRequest)
        complete.token.role = ROLE_DECODER
        for call, request in ((stub.RegisterWorker, register), (stub.CompletePhase, complete)):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=10, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]


def test_a_worker_without_a_token_ends_with_a_sentence(meshed: tuple[Fleet, Path]) -> None:
    """It can't be of use, and says why; a supervisor shows it."""
    fleet, folder = meshed
    shutil.copy(folder / "encoder.token", folder / "transformer-for-encoder.token")
    for name, flags, words in (
        ("encoder-1", (), "prove who it is"),
        ("transformer-1", ("--token-file", str(folder / "transformer-for-encoder.token")), "may not speak for"),
    ):
        fleet.flags_by_name = {name: (*flags, "--fake-stage-seconds", "0.05")}
        with pytest.raises(AssertionError, match="ended"):
            fleet.start(name)
        assert fleet.processes[name].wait(30) == 2
        assert words in fleet.log(name)


def test_a_stranger_without_its_capability_gets_no_room_and_does_not_learn_whether_it_is_there(
    meshed: tuple[Fleet, Path],
) -> None:
    """Workers show each other no token, so none is asked for."""
    fleet, _folder = meshed
    rank = 2**32 + 7
    with grpc.insecure_channel(fleet.addresses["encoder-0"]) as channel:
        for room in (RoomRef(), RoomRef(room_id=rank, capability=b"x" * 16)):
            with pytest.raises(grpc.RpcError) as caught:
                list(WorkerServiceStub(channel).FetchRoom(FetchRoomRequest(room=room), timeout=10))
            assert refusal(caught.value) == (grpc.StatusCode.NOT_FOUND, "ROOM_GONE")


@pytest.mark.parametrize("method", sorted(path for path, rules in SERVED.items() if not rules.by_capability))
def test_a_stranger_gets_unauthenticated_from_every_rpc(meshed: tuple[Fleet, Path], method: str) -> None:
    """Before the message is looked at: bytes that are none make no difference."""
    fleet, _folder = meshed
    with grpc.insecure_channel(fleet.addresses[process_of(method)]) as channel:
        for message in (b"", b"\xff" * 1000):
            for token in ("", "triptych_" + "A" * 43):
                call = channel.unary_stream if not method.endswith("/Heartbeat") else channel.stream_stream
                metadata = (("authorization", f"Bearer {token}"),) if token else ()
                answers = call(method, None, None)(
                    message if not method.endswith("/Heartbeat") else iter([message]), timeout=10, metadata=metadata
                )
                with pytest.raises(grpc.RpcError) as caught:
                    list(answers)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*CLIENTS, *ROLES])
def test_what_a_tokens_scopes_may_call(meshed: tuple[Fleet, Path], name: str) -> None:
    """The whole table, as behind certificates."""
    fleet, folder = meshed
    scopes = set(CLIENTS.get(name, [name]))
    for method, rules in SERVED.items():
        may = "admin" in scopes or bool(scopes & set(rules.scopes))
        if may and method in HARMFUL:
            continue
        with grpc.insecure_channel(fleet.addresses[process_of(method)]) as channel:
            assert is_refused(channel, method, token_of(folder, name)) is not may, f"{method} with {scopes}"


def test_clients_touch_their_own_jobs_only(meshed: tuple[Fleet, Path], tmp_path: Path) -> None:
    """Whatever they ask of another's: it is not there. Not its result either, nor who runs it."""
    fleet, folder = meshed
    bob = Client(fleet.endpoint, RetryPolicy(total_s_max=60.0), ClientAccess(token=token_of(folder, "bob")))
    root = Client(fleet.endpoint, RetryPolicy(total_s_max=60.0), ClientAccess(token=token_of(folder, "root")))
    with fleet.client() as alice, bob, root:
        job = alice.generate("a cat", tmp_path / "out.npy", request_id="mine").job
        bobs = bob.create_job("a dog", request_id="mine")
        assert bobs.job_id != job.job_id
        for call in (
            lambda: bob.get_job(job.job_id),
            lambda: list(bob.watch_job(job.job_id)),
            lambda: bob.cancel_job(job.job_id),
            lambda: bob.retry_job(job.job_id),
            lambda: bob.download_result(job.job_id, tmp_path / "bobs.npy"),
        ):
            with pytest.raises(NotFound, match="there is no job"):
                call()
        assert job.job_id not in {listed.job_id for listed in bob.list_jobs()}
        assert job.job_id in {listed.job_id for listed in root.list_jobs()}
        assert (
            root.download_result(job.job_id, tmp_path / "roots.npy").read_bytes() == (tmp_path / "out.npy").read_bytes()
        )
    metadata = (("authorization", f"Bearer {token_of(folder, 'bob')}"),)
    with grpc.insecure_channel(fleet.addresses["encoder-0"]) as channel:
        direct = GenerateRequest(request=GenerationRequest(prompt="a cow"), request_id="hers")
        answer = generate_directly(channel, direct, metadata=metadata)
    assert answer.job.client == "token:bob"


def test_a_fleet_listens_on_this_machine_only_and_its_files_are_its_owners(meshed: tuple[Fleet, Path]) -> None:
    """Where nobody says otherwise, and Mooncake is off."""
    fleet, folder = meshed
    for name, process in fleet.processes.items():
        if process.poll() is None:
            listening = psutil.Process(process.pid).net_connections("tcp")
            hosts = {found.laddr.ip for found in listening if found.status == psutil.CONN_LISTEN}
            assert hosts <= {"127.0.0.1", "::ffff:127.0.0.1"}, name
    state = folder / "fleet" / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for file in (*state.glob("journal.db*"), *Path("/dev/shm").glob(f"triptych-arena-{process.pid}-*")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_the_prometheus_page_names_nobody(meshed: tuple[Fleet, Path], tmp_path: Path) -> None:
    fleet, _folder = meshed
    with fleet.client() as client:
        client.generate("qzv7canary", tmp_path / "out.npy")
    page = urllib.request.urlopen(f"http://127.0.0.1:{fleet.metrics_port}/metrics", timeout=10).read().decode()  # type: ignore[attr-defined]
    assert "all_queues_empty" in page
    assert not [word for word in ("alice", "token:", "qzv7canary") if word in page]
