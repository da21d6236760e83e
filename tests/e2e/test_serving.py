"""SERVING means that work is accepted: at a controller once a model is known, at a worker while it takes jobs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fleet.processes import Fleet
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1 import generation_service_pb2_grpc as pb_grpc
from triptych.v1.job_pb2 import JOB_STATE_ENCODED, GenerationRequest

CALL_TIMEOUT_S, WATCH_TIMEOUT_S = 10.0, 60.0
GENERATION, FLEET, RING, WORKER, ENCODER = (
    f"triptych.v1.{name}Service" for name in ("Generation", "Fleet", "Ring", "Worker", "Encoder")
)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Nothing of it runs yet."""
    fleet = Fleet(
        tmp_path / "fleet",
        "",
        worker_flags=("--fake-stage-seconds", "0.2", "--mover", "rpc", "--release-timeout-s", "30"),
    )
    try:
        yield fleet
    finally:
        fleet.__exit__(None, None, None)


def statuses(address: str, *services: str) -> list[int]:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = (health_pb2.HealthCheckRequest(service=service) for service in services)
        return [stub.Check(one, timeout=CALL_TIMEOUT_S).status for one in asked]


def wait_for(address: str, service: str, status: int) -> None:
    """Watch a service until it has this status."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=WATCH_TIMEOUT_S):
            if answer.status == status:
                return


def create_job(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        request = pb.CreateJobRequest(request=GenerationRequest(prompt="a cat", height=32, width=48))
        return pb_grpc.GenerationServiceStub(channel).CreateJob(request, timeout=CALL_TIMEOUT_S).job.job_id


def wait_encoded(address: str, job_id: str) -> None:
    with grpc.insecure_channel(address) as channel:
        watch = pb_grpc.GenerationServiceStub(channel).WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=60)
        assert any(update.job.state == JOB_STATE_ENCODED for update in watch)


def test_who_says_serving_takes_what_is_sent(fleet: Fleet) -> None:
    fleet.start("controller")
    controller = fleet.endpoint
    assert statuses(controller, "", GENERATION, FLEET, RING) == [NOT_SERVING, NOT_SERVING, SERVING, SERVING]
    with pytest.raises(grpc.RpcError):
        create_job(controller)
    fleet.spawn("encoder-0")
    wait_for(controller, GENERATION, SERVING)
    job_id = create_job(controller)
    assert statuses(controller, "", GENERATION, FLEET, RING) == [SERVING] * 4
    fleet.wait_ready("encoder-0")
    encoder = fleet.addresses["encoder-0"]
    assert statuses(encoder, "", WORKER, ENCODER) == [SERVING] * 3
    wait_encoded(controller, job_id)

    fleet.kill("controller")
    for service in ("", ENCODER, WORKER):
        wait_for(encoder, service, NOT_SERVING)
    fleet.start("controller")
    assert statuses(controller, "", GENERATION) == [SERVING] * 2, "the model is known from the journal"
    for service in ("", ENCODER, WORKER):
        wait_for(encoder, service, SERVING)

    fleet.processes["encoder-0"].send_signal(signal.SIGTERM)  # others may still fetch what it has made
    wait_for(encoder, ENCODER, NOT_SERVING)
    assert statuses(encoder, "", ENCODER, WORKER) == [NOT_SERVING, NOT_SERVING, SERVING]
    fleet.kill("encoder-0")  # it would wait for a transformer to fetch the room
