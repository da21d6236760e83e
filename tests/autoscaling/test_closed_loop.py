"""A fleet of real processes that grows and shrinks as the controller wishes, by the formulas of KEDA and the HPA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.autoscaling.hpa import Hpa
from tests.fleet.processes import CONTROLLER, ROLES, Fleet, wait_until
from triptych.externalscaler import externalscaler_pb2 as pb
from triptych.externalscaler.externalscaler_pb2_grpc import ExternalScalerStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED
from triptych_client import Client

STAGE_S = 1.0
"""A transformer's; encoder and decoder take a tenth."""
SYNC_S = 1.0
"""KEDA asks every 15 to 30 s; all other times are as much smaller."""
WINDOW_S = 10.0
WAIT_S = 15.0
WORKERS_MAX = 10
IDLE_JOBS_PER_S = 0.3
LOAD_JOBS_PER_S = 3.0
SETTLED = (3, 5)
"""Transformers: three jobs a second of a second each, and what a process adds to it on a busy machine."""


class ScaledFleet:
    """The fleet with what KEDA, the HPA and the kubelet do to it."""

    def __init__(self, fleet: Fleet, client: Client, stub: ExternalScalerStub) -> None:
        self._fleet = fleet
        self.client = client
        self._stub = stub
        self._hpas = {role: Hpa(WORKERS_MAX, WINDOW_S, WINDOW_S) for role in ROLES}
        self._started = 0
        self.names: dict[str, list[str]] = {role: [] for role in ROLES}
        """Present workers by role, the oldest first."""
        self._leaving: list[str] = []
        self.seen: dict[str, list[int]] = {role: [] for role in ROLES}
        self.job_ids: list[str] = []
        self._synced_s = 0.0

    def run(self, seconds: float, jobs_per_s: float) -> None:
        """Send jobs evenly for so long."""
        begun_s = time.monotonic()
        due_s = begun_s
        while (now_s := time.monotonic()) < begun_s + seconds:
            if jobs_per_s and due_s <= now_s:
                due_s += 1 / jobs_per_s
                self.job_ids.append(self.client.create_job("a cat").job_id)
            self.sync(now_s)
            self._tick()

    def until(self, condition: object, timeout_s: float, about: str) -> None:
        """Go on without jobs until a condition holds."""
        wait_until(lambda: self.sync(time.monotonic()) or condition(), timeout_s, about)  # type: ignore[operator]

    def _tick(self) -> None:
        time.sleep(0.02)  # the arrivals' own clock

    def sync(self, now_s: float) -> None:
        """Ask and act, as often as it is time for it."""
        if now_s - self._synced_s < SYNC_S:
            return
        self._synced_s = now_s
        for role in ROLES:
            asked = pb.ScaledObjectRef(scalerMetadata={"role": role, "targetWaitSeconds": str(WAIT_S)})
            metric = pb.GetMetricsRequest(scaledObjectRef=asked, metricName=f"triptych-{role}")
            (value,) = self._stub.GetMetrics(metric, timeout=30).metricValues
            is_active = self._stub.IsActive(asked, timeout=30).result
            names = self.names[role]
            count = self._hpas[role].wanted(now_s, len(names), value.metricValueFloat, is_active)
            while len(names) < count:
                self._started += 1
                names.append(f"{role}-{self._started}")
                self._fleet.spawn(names[-1])
            while len(names) > count:
                self._leaving.append(names.pop())
                self._fleet.processes[self._leaving[-1]].terminate()
            self.seen[role].append(count)
        self._bury()

    def _bury(self) -> None:
        for name in [one for one in self._leaving if self._fleet.processes[one].poll() is not None]:
            process = self._fleet.processes.pop(name)
            assert process.returncode == 0, self._fleet.log(name)
            process.stdout.close()  # type: ignore[union-attr]
            self._leaving.remove(name)

    @property
    def is_gone(self) -> bool:
        return not any(self.names.values()) and not self._leaving


@pytest.fixture
def scaled(tmp_path: Path) -> Iterator[ScaledFleet]:
    fleet = Fleet(
        tmp_path,
        "fake",
        counts=dict.fromkeys(ROLES, 0),
        worker_flags=("--fake-stage-seconds", str(STAGE_S), "--rings", "rpc"),
        controller_flags=("--rings", "rpc"),
    )
    with fleet, fleet.client() as client, grpc.insecure_channel(fleet.addresses[CONTROLLER]) as channel:
        yield ScaledFleet(fleet, client, ExternalScalerStub(channel))


def test_a_step_from_idle_to_ten_times_settles_and_nothing_is_lost_on_the_way_down(scaled: ScaledFleet) -> None:
    scaled.until(lambda: len(scaled.client.get_fleet().workers) == len(ROLES), 120.0, "one worker of each role")
    assert {role: len(names) for role, names in scaled.names.items()} == dict.fromkeys(ROLES, 1)
    scaled.run(10.0, IDLE_JOBS_PER_S)
    scaled.run(60.0, LOAD_JOBS_PER_S)
    counts = {role: len(names) for role, names in scaled.names.items()}
    print(f"settled at {counts}; transformers each second: {scaled.seen['transformer']}")
    assert SETTLED[0] <= counts["transformer"] <= SETTLED[1]
    for role in ROLES:
        assert max(scaled.seen[role]) <= counts[role] + 1, f"{role} overshoots: {scaled.seen[role]}"
    scaled.until(lambda: scaled.is_gone, 120.0, "all have left by draining")
    found = [scaled.client.get_job(job_id) for job_id in scaled.job_ids]
    assert {job.state for job in found} == {JOB_STATE_SUCCEEDED}
    assert not [list(job.attempts) for job in found if job.attempts]
