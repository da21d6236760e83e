"""Who is known may do what its role or scopes say, and nothing else; on a live fleet, over real TLS."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.conftest import generate_directly
from tests.fleet.answering import answering
from tests.fleet.processes import ROLES, wait_until
from tests.messages import registration
from tests.security.conftest import SCOPES, Guarded, make_guarded
from tests.security.test_strangers import channel_to
from triptych import rpc
from triptych.environment import ClientAccess
from triptych.errors import NotFound, QuotaFull, Unauthenticated
from triptych.security import tokens
from triptych.security.auth import SCOPES_BY_ROLE
from triptych.security.rules import RULES
from triptych.stages.fake import expected_outputs
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1 import ring_service_pb2 as ring_pb
from triptych.v1.dispatch_pb2 import (
    RING_PHASE1,
    RING_PHASE2,
    RING_REQUEST,
    ROLE_DECODER,
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Dispatch,
    Ring,
    Role,
)
from triptych.v1.encoder_service_pb2 import GenerateRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, Artifact, GenerationRequest, Job
from triptych.v1.ring_service_pb2_grpc import RingServiceStub
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_pb2 import Worker
from triptych.v1.worker_service_pb2 import FetchRoomRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub
from triptych_client import Client
from triptych_client.retry import RetryPolicy

NOT_ALLOWED = (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
HARMFUL = {"/triptych.v1.WorkerService/Drain"}
"""Not called by those who may."""
SHOWN_TRIES = 10
PROCESS_OF = {
    "GenerationService": "controller",
    "FileService": "controller",
    "FleetService": "controller",
    "ExternalScaler": "controller",
    "RingService": "controller",
    "EncoderService": "encoder-0",
    "TextEncoderService": "text_encoder-0",
    "WorkerService": "transformer-0",
}


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), rpc.reason_from(error)  # type: ignore[attr-defined, arg-type]


def is_refused(channel: grpc.Channel, method: str, token: str = "") -> bool:
    """Whether the caller may not call this; an empty message gets no further than to the servicer's own checks."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    takes_stream = method.endswith("/Heartbeat")
    kind = channel.stream_stream if takes_stream else channel.unary_stream
    call = kind(method, request_serializer=None, response_deserializer=None)(
        iter([b""]) if takes_stream else b"", timeout=10, metadata=metadata
    )
    try:
        next(iter(call), None)
        call.cancel()
    except grpc.RpcError as error:
        return refusal(error) == NOT_ALLOWED and " may not call " in (error.details() or "")  # type: ignore[attr-defined]
    return False


def process_of(method: str) -> str:
    return PROCESS_OF[method.split("/")[1].rpartition(".")[2]]


def check_table(guarded: Guarded, scopes: set[str], tls: Path | None, token: str) -> None:
    for method, rules in RULES.items():
        may = "admin" in scopes or bool(scopes & set(rules.scopes))
        if may and method in HARMFUL:
            continue
        with channel_to(guarded, process_of(method), tls) as channel:
            assert is_refused(channel, method, token) is not may, f"{method} with {scopes}"


@pytest.mark.parametrize("role", SCOPES_BY_ROLE)
def test_what_a_certificates_role_may_call(guarded: Guarded, role: str) -> None:
    check_table(guarded, set(SCOPES_BY_ROLE[role]), guarded.certs / role, "")


@pytest.mark.parametrize("name", SCOPES)
def test_what_a_tokens_scopes_may_call(guarded: Guarded, name: str) -> None:
    check_table(guarded, set(SCOPES[name]), None, guarded.tokens[name])


def test_a_job_over_mutual_tls_gives_the_right_bits(guarded: Guarded, tmp_path: Path) -> None:
    """Prompt to file with nothing in the clear: control plane, queues, and rooms by `rpc`."""
    with guarded.fleet.client() as client:
        made = client.generate("a cat", tmp_path / "out.npy", seed=3, height=16, width=24)
        wait_until(lambda: movers_used(client), 10, "workers have reported how they fetched")
        assert movers_used(client) == {"rpc"}
    request = GenerationRequest(prompt="a cat", seed=3, height=16, width=24)
    assert np.array_equal(np.load(made.paths[0]), expected_outputs(request)["images"][0])  # type: ignore[index]
    assert made.job.client == "cert:client"


def movers_used(client: Client) -> set[str]:
    return {mover for worker in client.get_fleet().workers for mover in worker.status.fetch_count_by_mover}


def rank_of(guarded: Guarded, role: Role.ValueType) -> int:
    with guarded.fleet.client() as client:
        workers: list[Worker] = list(client.get_fleet().workers)
    return next(worker.rank for worker in workers if worker.info.role == role)


TOKEN = fleet_pb.PhaseToken(job_id="j", role=ROLE_DECODER)
CALLS: list[tuple[str, Any]] = [
    ("StartPhase", fleet_pb.StartPhaseRequest(token=TOKEN)),
    ("CompletePhase", fleet_pb.CompletePhaseRequest(token=TOKEN, artifacts=[Artifact(name="x")])),
    ("FailPhase", fleet_pb.FailPhaseRequest(token=TOKEN)),
]


@pytest.mark.parametrize(("method", "request_"), CALLS, ids=[name for name, _ in CALLS])
@pytest.mark.parametrize("rank_role", [ROLE_DECODER, ROLE_ENCODER], ids=["a decoder's rank", "its own rank"])
def test_an_encoder_certificate_cannot_complete_a_job(
    guarded: Guarded, method: str, request_: Any, rank_role: Role.ValueType
) -> None:
    """Neither in a decoder's name, nor in its own."""
    request_.token.lease.rank = rank_of(guarded, rank_role)
    with channel_to(guarded, "controller", guarded.certs / "encoder") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            getattr(FleetServiceStub(channel), method)(request_, timeout=10)
        assert refusal(caught.value) == NOT_ALLOWED


def test_a_certificate_registers_workers_of_its_role_only(guarded: Guarded) -> None:
    with channel_to(guarded, "controller", guarded.certs / "encoder") as channel:
        for role in (ROLE_TRANSFORMER, ROLE_DECODER):
            request = registration("x", role)
            with pytest.raises(grpc.RpcError) as caught:
                FleetServiceStub(channel).RegisterWorker(request, timeout=10)
            assert refusal(caught.value) == NOT_ALLOWED


def test_an_instance_keeps_its_role(guarded: Guarded) -> None:
    """Whoever learns of another's instance id doesn't get its rank for a role of its own."""
    with guarded.fleet.client() as client:
        description = client.describe_model()
    with channel_to(guarded, "controller", guarded.certs / "encoder") as channel:
        stub = FleetServiceStub(channel)
        with answering(guarded.certs / "encoder") as address:
            first = registration("shared", ROLE_ENCODER, model=description, address=address)
            rank = stub.RegisterWorker(first, timeout=10).rank
        with channel_to(guarded, "controller", guarded.certs / "decoder") as other:
            first.info.role = ROLE_DECODER
            with pytest.raises(grpc.RpcError) as caught:
                FleetServiceStub(other).RegisterWorker(first, timeout=10)
            assert refusal(caught.value) == NOT_ALLOWED
        stub.UnregisterWorker(fleet_pb.UnregisterWorkerRequest(rank=rank), timeout=10)


def test_heartbeats_and_goodbyes_of_another_role_are_refused(guarded: Guarded) -> None:
    rank = rank_of(guarded, ROLE_DECODER)
    with channel_to(guarded, "controller", guarded.certs / "encoder") as channel:
        stub = FleetServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Heartbeat(iter([fleet_pb.HeartbeatRequest(rank=rank)]), timeout=10))
        assert refusal(caught.value) == NOT_ALLOWED
        with pytest.raises(grpc.RpcError) as caught:
            stub.UnregisterWorker(fleet_pb.UnregisterWorkerRequest(rank=rank), timeout=10)
        assert refusal(caught.value) == NOT_ALLOWED
    assert rank_of(guarded, ROLE_DECODER) == rank, "it is still there"


@pytest.mark.parametrize("ring", [RING_REQUEST, RING_PHASE1, RING_PHASE2], ids=lambda ring: Ring.Name(ring))
@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_its_own_rings(guarded: Guarded, role: str, ring: Ring.ValueType) -> None:
    own = {"encoder": RING_REQUEST, "transformer": RING_PHASE1, "decoder": RING_PHASE2}
    sink = {"encoder": RING_PHASE1, "transformer": RING_PHASE2}
    rank = rank_of(guarded, Role.Value(f"ROLE_{role.upper()}"))
    lease = ring_pb.Lease(ring=ring, rank=rank, slot=1, ticket=2**31)
    with channel_to(guarded, "controller", guarded.certs / role) as channel:
        stub = RingServiceStub(channel)
        dispatch = Dispatch(job_id="x", sender_rank=rank + 1)  # refused further on, where the ring is allowed
        for allowed, call in (
            (own[role], lambda: stub.Ack(ring_pb.AckRequest(lease=lease), timeout=10)),
            (own[role], lambda: stub.Nack(ring_pb.NackRequest(lease=lease), timeout=10)),
            (sink.get(role), lambda: stub.Publish(ring_pb.PublishRequest(rank=rank, ring=ring, dispatch=dispatch))),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert (refusal(caught.value) == NOT_ALLOWED) is (ring != allowed)


def test_a_room_opens_to_its_capability_only(guarded: Guarded) -> None:
    """Also to a worker's certificate: what the reference doesn't prove isn't read."""
    rooms: list[RoomRef] = []
    with guarded.fleet.client() as client:
        job_id = client.create_job("a cat", num_inference_steps=200).job_id
        with channel_to(guarded, "controller") as channel:
            stub = RingServiceStub(channel)
            metadata = (("authorization", f"Bearer {guarded.tokens['root']}"),)

            def look() -> bool:
                shown = stub.ListSlots(ring_pb.ListSlotsRequest(ring=RING_PHASE1), timeout=10, metadata=metadata)
                rooms[:] = [slot.dispatch.room for slot in shown.slots if slot.dispatch.HasField("room")]
                return bool(rooms)

            wait_until(look, 30, "the encoder's room is in the ring")
        room = rooms[0]
        assert room.capability == b"", "people are shown the room, and not what opens it"
        with channel_to(guarded, "encoder-0", guarded.certs / "transformer") as channel:
            for capability in (b"", b"\0" * 16, b"\0" * 17):
                room.capability = capability
                with pytest.raises(grpc.RpcError) as caught:
                    list(WorkerServiceStub(channel).FetchRoom(FetchRoomRequest(room=room), timeout=10))
                assert refusal(caught.value) == (grpc.StatusCode.NOT_FOUND, "ROOM_GONE")
        assert over(client, job_id).state == JOB_STATE_SUCCEEDED, "who has the capability read it"


def over(client: Client, job_id: str) -> Job:
    for update in client.watch_job(job_id):
        job = update.job
    return job


def client_of(guarded: Guarded, name: str) -> Client:
    return Client(guarded.fleet.client_addresses["controller"], RetryPolicy(total_s_max=60.0), guarded.access(name))


def test_clients_see_their_own_jobs_only(guarded: Guarded) -> None:
    with client_of(guarded, "alice") as alice, client_of(guarded, "bob") as bob, client_of(guarded, "root") as root:
        job = alice.create_job("a cat", request_id="same")
        assert job.client == "token:alice"
        assert bob.create_job("a dog", request_id="same").job_id != job.job_id, "request ids are a client's own"
        for call in (bob.get_job, bob.cancel_job, lambda j: list(bob.watch_job(j))):
            with pytest.raises(NotFound):
                call(job.job_id)
        assert job.job_id not in {listed.job_id for listed in bob.list_jobs()}
        assert {"token:alice", "token:bob"} <= {listed.client for listed in root.list_jobs()}
        assert over(alice, job.job_id).state == JOB_STATE_SUCCEEDED


def test_the_fleet_is_shown_without_others_jobs(guarded: Guarded) -> None:
    with client_of(guarded, "alice") as alice, client_of(guarded, "bob") as bob:
        job_id = next(filter(None, (shown_job(alice) for _ in range(SHOWN_TRIES))))
        assert job_id not in shown_jobs(bob)
        own = sum(count.count for count in bob.get_fleet().job_counts)
        assert own == len(list(bob.list_jobs()))
        assert over(alice, job_id).state == JOB_STATE_SUCCEEDED


def shown_job(client: Client) -> str:
    """A new job, as soon as a worker says that it runs it; nothing where the job was over before that was seen."""
    job_id = client.create_job("a cat").job_id
    wait_until(
        lambda: job_id in shown_jobs(client) or client.get_job(job_id).state == JOB_STATE_SUCCEEDED, 60, "it is run"
    )
    return job_id if job_id in shown_jobs(client) else ""


def shown_jobs(client: Client) -> set[str]:
    return {worker.status.progress.job_id for worker in client.get_fleet().workers}


def test_the_direct_path_is_the_clients_too(guarded: Guarded) -> None:
    """An encoder finds out who calls, and the controller counts the job as that client's."""
    metadata = (("authorization", f"Bearer {guarded.tokens['alice']}"),)
    request = GenerateRequest(request=GenerationRequest(prompt="a cat"))
    with channel_to(guarded, "encoder-0") as channel:
        job = generate_directly(channel, request, metadata=metadata).job
    assert job.client == "token:alice"
    with client_of(guarded, "alice") as alice, client_of(guarded, "bob") as bob:
        assert over(alice, job.job_id).state == JOB_STATE_SUCCEEDED
        with pytest.raises(NotFound):
            bob.get_job(job.job_id)


def test_tokens_come_and_go_while_the_fleet_runs(guarded: Guarded) -> None:
    token = tokens.add(guarded.token_file, "carol", ["submit", "read"], jobs_max=1)
    access = ClientAccess(tls=str(guarded.anybody), token=token)
    address = guarded.fleet.client_addresses["controller"]
    with Client(address, RetryPolicy(total_s_max=5.0), access) as carol:
        guarded.fleet.processes["transformer-0"].send_signal(signal.SIGSTOP)  # so that the job goes on
        try:
            job = carol.create_job("a cat")
            with pytest.raises(QuotaFull, match="carol"):
                carol.create_job("a dog")
            carol.cancel_job(job.job_id)
        finally:
            guarded.fleet.processes["transformer-0"].send_signal(signal.SIGCONT)
        tokens.remove(guarded.token_file, "carol")
        with pytest.raises(Unauthenticated):
            carol.get_job(job.job_id)


def test_a_fleet_goes_on_when_its_certificates_are_renewed(tmp_path: Path) -> None:
    """Every process takes up new files of a new authority; jobs before, during and after get their bits."""
    from triptych_client import authority

    guarded = make_guarded(tmp_path)
    with guarded.fleet:
        with guarded.fleet.client() as client:
            client.generate("a cat", tmp_path / "before.npy", seed=1)
            job_id = client.create_job("a cat", seed=1, num_inference_steps=200).job_id
            shutil.rmtree(guarded.certs)
            authority.init(guarded.certs, ["127.0.0.1"])
            assert over(client, job_id).state == JOB_STATE_SUCCEEDED
            client.generate("a cat", tmp_path / "after.npy", seed=1)
        guarded.fleet.kill("controller")
        guarded.fleet.start("controller")  # all must connect anew, by the new certificates
        with guarded.fleet.client() as client:
            client.generate("a cat", tmp_path / "later.npy", seed=1)
    files = [(tmp_path / f"{name}.npy").read_bytes() for name in ("before", "after", "later")]
    assert files[0] == files[1] == files[2]
