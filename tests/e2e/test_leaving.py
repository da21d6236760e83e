"""Between SIGTERM and the drain a process says that it leaves, and serves as before."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.e2e.conftest import channel_to, generate_directly
from tests.failures.loads import check, request, wait_over
from tests.fleet.held import WAIT_S
from tests.fleet.processes import STOP_TIMEOUT_S, Fleet, wait_until
from triptych.rpc import ALIVE
from triptych.v1.encoder_service_pb2 import GenerateRequest

FLAGS = ("--fake-stage-seconds", "0.3", "--mover", "local", "--rings", "rpc")
LONG = ("--lame-duck-s", "600")
SERVICE = {"controller": "triptych.v1.GenerationService", "encoder-0": "triptych.v1.EncoderService"}


def is_serving(fleet: Fleet, name: str, service: str) -> bool:
    with channel_to(fleet, name) as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=WAIT_S)
    return bool(answer.status == HealthCheckResponse.SERVING)


def leave(fleet: Fleet, name: str) -> None:
    fleet.processes[name].send_signal(signal.SIGTERM)
    wait_until(lambda: not is_serving(fleet, name, SERVICE[name]), WAIT_S, f"{name} says that it leaves")
    assert not is_serving(fleet, name, "")
    assert is_serving(fleet, name, ALIVE), "a probe of liveness would end it"


def test_who_leaves_still_takes_jobs_and_finishes_them(tmp_path: Path) -> None:
    flags = dict.fromkeys(SERVICE, LONG)
    with Fleet(tmp_path / "fleet", "", worker_flags=FLAGS, flags_by_name=flags) as fleet, fleet.client() as client:
        for name in SERVICE:
            leave(fleet, name)
        assert is_serving(fleet, "encoder-0", "triptych.v1.WorkerService"), "others fetch its rooms"
        with channel_to(fleet, "encoder-0") as channel:
            direct = generate_directly(channel, GenerateRequest(request=request(1))).job.job_id
        queued = client.submit(request(2)).job_id
        jobs = wait_over(client, [direct, queued], WAIT_S)
        for seed, job_id in ((1, direct), (2, queued)):
            check(client, jobs[job_id], seed, tmp_path)
        for name in reversed(SERVICE):  # a second signal, and that of a person at a terminal, end the wait
            fleet.processes[name].send_signal(signal.SIGTERM if name == "controller" else signal.SIGINT)
            assert fleet.processes[name].wait(STOP_TIMEOUT_S) == 0, fleet.log(name)


def test_a_first_worker_does_not_take_it_back(tmp_path: Path) -> None:
    """A controller without a model says SERVING when the first worker comes, but not while it leaves."""
    counts = dict.fromkeys(("encoder", "transformer", "decoder"), 0)
    with Fleet(tmp_path / "fleet", "", counts=counts, worker_flags=FLAGS, controller_flags=LONG) as fleet:
        fleet.processes["controller"].send_signal(signal.SIGTERM)
        fleet_service = "triptych.v1.FleetService"
        wait_until(lambda: not is_serving(fleet, "controller", fleet_service), WAIT_S, "the controller leaves")
        fleet.start("encoder-0")
        assert not is_serving(fleet, "controller", SERVICE["controller"])
        assert is_serving(fleet, "controller", ALIVE)


def test_nobody_waits_for_it_where_it_is_0(tmp_path: Path) -> None:
    counts = dict.fromkeys(("encoder", "transformer", "decoder"), 0)
    with Fleet(tmp_path / "fleet", "", counts=counts) as fleet:
        with channel_to(fleet) as channel:
            grpc.channel_ready_future(channel).result(WAIT_S)
        fleet.processes["controller"].send_signal(signal.SIGTERM)
        assert fleet.processes["controller"].wait(STOP_TIMEOUT_S) == 0
        assert "leaving" not in fleet.log("controller")
