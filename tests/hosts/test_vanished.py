"""A host that vanishes: its packets go nowhere, and nobody is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.conftest import succeeded
from tests.fleet.processes import CONTROLLER, DEATH_TIMEOUT_S, wait_until
from tests.hosts.hosts import Hosts, HostsFleet
from triptych.v1.job_pb2 import JOB_STATE_DECODING
from triptych_client import Client

JOBS = 12
BACK_TIMEOUT_S = 90.0
"""A connection whose packets were lost is noticed within 30 s, by keepalive."""
NOTICED_S = 5 * DEATH_TIMEOUT_S
"""By when jobs have gone elsewhere: silence takes `worker_timeout_s`, a machine under load more."""


def submitted(client: Client, count: int = JOBS) -> list[str]:
    return [
        client.create_job("anything", seed=seed, height=64, width=64, num_inference_steps=4).job_id
        for seed in range(count)
    ]


def worker_count(client: Client) -> int:
    return len(client.get_fleet().workers)


def are_all_succeeded(client: Client, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        succeeded(client, job_id)


def test_the_jobs_of_a_worker_whose_host_vanished_go_elsewhere(
    hosts: Hosts, tmp_path: Path, measured: list[str]
) -> None:
    slow = {"decoder-0": ("--fake-stage-seconds", "20"), "decoder-1": ("--fake-stage-seconds", "1")}
    with (
        HostsFleet(
            hosts,
            tmp_path / "fleet",
            hosts.ip,
            counts={"decoder": 2},
            flags_by_name=slow,
            worker_timeout_s=DEATH_TIMEOUT_S,
        ) as fleet,
        fleet.client() as client,
    ):
        job_ids = submitted(client)
        rank = next(
            worker.rank for worker in client.get_fleet().workers if worker.info.process_id == fleet.pid("decoder-0")
        )

        def has_a_job() -> bool:
            return any(
                worker.rank == rank and worker.status.progress.job_id for worker in client.get_fleet().workers
            ) and any(True for _job in client.list_jobs([JOB_STATE_DECODING]))

        wait_until(has_a_job, BACK_TIMEOUT_S, "the decoder works on a job")
        asyncio.run(hosts.partition("decoder-0"))
        try:
            started_s = time.monotonic()
            wait_until(lambda: worker_count(client) == 3, NOTICED_S, "the silent decoder is no member")
            gone_s = time.monotonic() - started_s
            are_all_succeeded(client, job_ids)
        finally:
            asyncio.run(hosts.heal("decoder-0"))
        wait_until(lambda: worker_count(client) == 4, BACK_TIMEOUT_S, "the decoder is a member again")
        attempts = [attempt for job_id in job_ids for attempt in client.get_job(job_id).attempts]
    assert {attempt.rank for attempt in attempts} == {rank}, attempts
    measured.append(
        f"a host that vanished: its worker was gone after {gone_s:.1f} s (worker_timeout_s {DEATH_TIMEOUT_S:g}), "
        f"{len(attempts)} of {JOBS} jobs were done again elsewhere"
    )


def test_workers_register_again_when_the_controllers_host_comes_back(hosts: Hosts, tmp_path: Path) -> None:
    """It loses its power: nothing ends the workers' connections, and a new process answers."""
    with (
        HostsFleet(hosts, tmp_path / "fleet", hosts.ip, worker_timeout_s=DEATH_TIMEOUT_S) as fleet,
        fleet.client() as client,
    ):
        job_ids = submitted(client)
        asyncio.run(hosts.partition(CONTROLLER))
        try:
            fleet.kill(CONTROLLER)
        finally:
            asyncio.run(hosts.heal(CONTROLLER))
        fleet.processes.pop(CONTROLLER).stdout.close()  # type: ignore[union-attr]
        fleet.start(CONTROLLER)
        wait_until(lambda: worker_count(client) == 3, BACK_TIMEOUT_S, "all workers are members again")
        are_all_succeeded(client, job_ids)
        epochs = [name for name in fleet.workers if "registered in epoch 2" in fleet.log(name)]
    assert epochs == fleet.workers


def test_workers_come_back_when_the_way_to_the_controller_does(hosts: Hosts, tmp_path: Path) -> None:
    with (
        HostsFleet(hosts, tmp_path / "fleet", hosts.ip, worker_timeout_s=DEATH_TIMEOUT_S) as fleet,
        fleet.client() as client,
    ):
        job_ids = submitted(client)
        asyncio.run(hosts.partition(CONTROLLER))
        try:
            gone = "worker is gone"
            wait_until(lambda: fleet.log(CONTROLLER).count(gone) == 3, NOTICED_S, "all workers are silent")
        finally:
            asyncio.run(hosts.heal(CONTROLLER))
        wait_until(lambda: worker_count(client) == 3, BACK_TIMEOUT_S, "all workers are members again")
        are_all_succeeded(client, job_ids)
