"""Behind a mesh, which encrypts: no certificates of our own, and everybody, workers too, has a token."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.fleet import ROLES, Fleet
from triptych import tokens
from triptych.config import ClientAccess
from triptych.errors import Unauthenticated
from triptych.v1.dispatch_pb2 import ROLE_DECODER
from triptych.v1.fleet_service_pb2 import CompletePhaseRequest, RegisterWorkerRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych_client import Client
from triptych_client.retry import RetryPolicy


@pytest.fixture(scope="module")
def meshed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Path]]:
    folder = tmp_path_factory.mktemp("meshed")
    file = folder / "tokens.toml"
    for role in ROLES:
        (folder / f"{role}.token").write_text(tokens.add(file, f"{role}s", [role]) + "\n")
    alice = tokens.add(file, "alice", ["submit", "read"])
    shared = ("--tokens", str(file))
    flags = {
        f"{role}-0": (*shared, "--token-file", str(folder / f"{role}.token"), "--fake-stage-seconds", "0.05")
        for role in ROLES
    }
    rpc_only = ("--mover", "rpc")
    fleet = Fleet(
        folder / "fleet",
        "fake",
        flags_by_name=flags,
        controller_flags=shared,
        worker_flags=rpc_only,
        access=ClientAccess(token=alice),
    )
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
            Client(fleet.endpoint, RetryPolicy(total_s_max=1.0), access) as client,
            pytest.raises(Unauthenticated, match="token"),
        ):
            client.get_fleet()


def test_a_workers_token_is_good_for_its_role_only(meshed: tuple[Fleet, Path]) -> None:
    fleet, folder = meshed
    metadata = (("authorization", f"Bearer {(folder / 'encoder.token').read_text().strip()}"),)
    with grpc.insecure_channel(fleet.endpoint) as channel:
        stub = FleetServiceStub(channel)
        register = RegisterWorkerRequest(instance_id="x", role=ROLE_DECODER, address="127.0.0.1:1")
        complete = CompletePhaseRequest(role=ROLE_DECODER)
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
        fleet._flags_by_name = {name: (*flags, "--fake-stage-seconds", "0.05")}
        with pytest.raises(AssertionError, match="ended"):
            fleet.start(name)
        assert fleet.processes[name].wait(30) == 2
        assert words in fleet.log(name)
