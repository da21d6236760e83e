"""Workers that reach the rings by themselves can't be woken by them: the heartbeat stream carries a hint.

The worker is this test: it registers and reports like one that uses RDMA, and its machine needs none.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.fleet.answering import answering
from tests.fleet.processes import Fleet
from tests.messages import heartbeat, registration
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_ENCODER
from triptych.v1.fleet_service_pb2 import HeartbeatRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych.v1.model_pb2 import INPUT_KIND_TEXT, ModelDescription
from triptych.v1.worker_pb2 import WORKER_STATE_IDLE

HINT_TIMEOUT_S = 60.0
"""Longer than any hint takes."""


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Fleet]:
    """A controller and nobody else."""
    with Fleet(tmp_path / "fleet", "", counts={"encoder": 0, "transformer": 0, "decoder": 0}) as fleet:
        yield fleet


def register(stub: FleetServiceStub) -> int:
    model = ModelDescription(model="none", config_digest="0" * 64, outputs=["images"])
    model.inputs.add(name="prompt", kind=INPUT_KIND_TEXT)
    with answering() as address:
        return stub.RegisterWorker(registration("me", ROLE_ENCODER, model=model, address=address)).rank


def test_a_new_job_is_a_hint_to_idle_encoders(controller: Fleet) -> None:
    reports: queue.Queue[HeartbeatRequest] = queue.Queue()
    with grpc.insecure_channel(controller.endpoint) as channel, controller.client() as client:
        stub = FleetServiceStub(channel)
        rank = register(stub)
        report = heartbeat(rank, state=WORKER_STATE_IDLE)
        report.status.rings.name = "verbs"
        reports.put(report)
        orders = stub.Heartbeat(iter(reports.get, None), timeout=HINT_TIMEOUT_S)
        (worker,) = client.get_fleet().workers
        while worker.status.rings.name != "verbs":  # the report is on its way
            (worker,) = client.get_fleet().workers
        client.create_job("a big red circle")
        assert list(next(iter(orders)).ready_rings) == [RING_REQUEST]
        reports.put(heartbeat(rank, rings=report.status.rings, changed_rings=[RING_REQUEST]))
        assert list(next(iter(orders)).ready_rings) == [RING_REQUEST]
        orders.cancel()


def test_those_that_ask_the_controller_need_none(controller: Fleet) -> None:
    reports: queue.Queue[HeartbeatRequest] = queue.Queue()
    with grpc.insecure_channel(controller.endpoint) as channel, controller.client() as client:
        stub = FleetServiceStub(channel)
        reports.put(heartbeat(register(stub), state=WORKER_STATE_IDLE))
        orders = stub.Heartbeat(iter(reports.get, None), timeout=1.0)
        client.create_job("a big red circle")
        with pytest.raises(grpc.RpcError) as ended:
            next(iter(orders))
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
