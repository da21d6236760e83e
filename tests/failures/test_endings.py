"""Whoever sees a process end tells the controller: nobody waits for silence. Here silence would take ten minutes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.environment import ClientAccess
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED, JOB_STATE_DENOISING, Job
from triptych_client import AsyncClient, FleetPlan, authority
from triptych_client.local_fleet import Fleet, run_fleet
from triptych_client.processes import ProcessSpec

WAIT_S = 90.0
SILENCE_S = 600
STAGE_S = 20


class FakePlan(FleetPlan):
    """Workers with a stage that takes its time, and a controller that takes silence for nothing."""

    def controller(self) -> ProcessSpec:
        spec = super().controller()
        return replace(spec, argv=(*spec.argv, "--worker-timeout-s", str(SILENCE_S)))

    def workers(self, controller_address: str, text_encoder_address: str = "") -> list[ProcessSpec]:
        more = ("--fake-stage-seconds", str(STAGE_S), "--mover", "rpc")
        return [
            replace(spec, argv=(*spec.argv, *more))
            for spec in super().workers(controller_address, text_encoder_address)
        ]


def plan(folder: Path, tls: str = "") -> FakePlan:
    return FakePlan(model=str(folder), state=folder / "state", tls=tls, drain_timeout_s=1)


async def seen(client: AsyncClient, job_id: str, attempts: Sequence[str]) -> Job:
    """The job as soon as it has these attempts and is denoised."""
    async with asyncio.timeout(WAIT_S):
        async for update in client.watch_job(job_id):
            reasons = [attempt.reason.partition(" ")[2].partition(" ")[2] for attempt in update.job.attempts]
            if reasons == list(attempts) and update.job.state == JOB_STATE_DENOISING:
                return update.job
    raise AssertionError(f"the job never had the attempts {attempts}")


async def kill(fleet: Fleet, *names: str) -> None:
    for name in names:
        os.kill(fleet.supervisor.pids[name], signal.SIGKILL)


@pytest.mark.parametrize("is_guarded", [False, True], ids=["open", "mutual TLS"])
async def test_the_launcher_tells_how_a_worker_ended(tmp_path: Path, is_guarded: bool) -> None:
    tls, access = "", ClientAccess()
    if is_guarded:
        authority.init(tmp_path / "certs", ["127.0.0.1"])
        tls, access = str(tmp_path / "certs"), ClientAccess(tls=str(tmp_path / "certs" / "client"))
    async with run_fleet(plan(tmp_path, tls)) as fleet, AsyncClient(fleet.endpoint, access=access) as client:
        job_id = (await client.create_job("a cat")).job_id
        first = (await seen(client, job_id, [])).transformer_rank
        await kill(fleet, "transformer-0")
        job = await seen(client, job_id, ["was ended by signal 9 (SIGKILL)"])
        assert (job.attempts[0].rank, job.attempts[0].kind) == (first, ATTEMPT_KIND_WORKER_DIED)
        assert job.transformer_rank != first
        await kill(fleet, "controller", "transformer-0")  # as where memory runs out for all
        await seen(client, job_id, ["was ended by signal 9 (SIGKILL)"] * 2)
        await client.cancel_job(job_id)
