"""Recovery: from kill -9 of a process to its job's next progress elsewhere, in units of the worker timeout.

A worker is killed in the middle of a job; what counts is the moment at which a watching client sees the same phase
started by another worker (there is a spare one of each role). The controller is killed and started again at once, as
`triptych up` does; what counts is the client's sight of the next step. Fake stages, so that nothing else takes time.

    python -m benchmarks.bench_recovery --runs 10
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.plan import CONTROLLER, Shape
from tests.chaos.stages import FakeStages
from tests.fleet.watched import WatchedFleet
from triptych.v1.job_pb2 import JOB_STATE_DECODING, JOB_STATE_DENOISING, JOB_STATE_ENCODING, Job, JobState
from triptych_client import AsyncClient

RATIO_MAX = 1.5
"""Silence is noticed after one timeout and a tick of half a second; with a timeout of 2 s that is 1.25."""
WORKER_TIMEOUT_S = 2.0
STAGE_S, SHORT_S = 40.0, 0.02
"""Of the role that is killed, which must not be done before, and of the others."""
STEPS = 400
"""Of a denoise, so that progress shows ten times a second."""
WAIT_S = 60.0
STATES: Mapping[str, JobState.ValueType] = {
    "encoder": JOB_STATE_ENCODING,
    "transformer": JOB_STATE_DENOISING,
    "decoder": JOB_STATE_DECODING,
}


@asynccontextmanager
async def _fleet(slow: str, folder: Path, timeout_s: float) -> AsyncIterator[tuple[WatchedFleet, AsyncClient]]:
    seconds = {role: STAGE_S if role == slow else SHORT_S for role in STATES}
    shape = Shape(encoders=2, transformers=2, decoders=2)
    fleet = WatchedFleet(folder, shape, FakeStages(seconds).worker_flags, worker_timeout_s=timeout_s)
    try:
        await fleet.open()
        async with AsyncClient(fleet.endpoint) as client:
            yield fleet, client
    finally:
        await fleet.close()


class _Watch:
    """A job, as a watching client sees it."""

    def __init__(self, client: AsyncClient, job: Job) -> None:
        self._updates = client.watch_job(job.job_id)

    async def until(self, condition: object) -> Job:
        """The first update for which the condition holds."""
        async with asyncio.timeout(WAIT_S):
            async for update in self._updates:
                if condition(update.job):  # type: ignore[operator]
                    return update.job
        raise AssertionError("the job was over before it was killed: STAGE_S is too short")


async def of_worker(role: str, runs: int, folder: Path, timeout_s: float) -> list[float]:
    """Seconds from a worker's death to the start of its job's phase at another."""
    found = []
    async with _fleet(role, folder, timeout_s) as (fleet, client):
        for run in range(runs):
            job = await client.create_job("a cat", seed=run, num_inference_steps=STEPS)
            watch = _Watch(client, job)
            job = await watch.until(lambda job: job.state == STATES[role] and _rank(job, role))
            await asyncio.sleep(random.uniform(0.3, 0.8))  # anywhere between two heartbeats
            victim, rank = await _name_of(client, fleet, _rank(job, role)), _rank(job, role)
            started_s = time.monotonic()
            await fleet.end(victim)
            await watch.until(lambda job, rank=rank: job.state == STATES[role] and _rank(job, role) != rank)
            found.append(time.monotonic() - started_s)
            await client.cancel_job(job.job_id)
            await _renew(fleet, role)
    return found


async def of_controller(runs: int, folder: Path, timeout_s: float) -> list[float]:
    """Seconds from the controller's death to the next step that a client sees."""
    found = []
    async with _fleet("transformer", folder, timeout_s) as (fleet, client):
        for run in range(runs):
            job = await client.create_job("a cat", seed=run, num_inference_steps=STEPS)
            watch = _Watch(client, job)
            job = await watch.until(lambda job: job.state == JOB_STATE_DENOISING and job.step > 3)
            started_s = time.monotonic()
            await fleet.end(CONTROLLER)
            fleet.spawn(CONTROLLER)
            await watch.until(lambda job, step=job.step: job.step > step + 5)
            found.append(time.monotonic() - started_s)
            await client.cancel_job(job.job_id)
    return found


async def _renew(fleet: WatchedFleet, role: str) -> None:
    """New workers of a role: the one that took over is busy for long, since a stage isn't stopped between two steps."""
    names = [name for name in fleet.workers if name.startswith(role)]
    for name in names:
        await fleet.end(name)
    await fleet.begin(names)


def _rank(job: Job, role: str) -> int:
    return int(getattr(job, f"{role}_rank"))


async def _name_of(client: AsyncClient, fleet: WatchedFleet, rank: int) -> str:
    (pid,) = [worker.info.process_id for worker in (await client.get_fleet()).workers if worker.rank == rank]
    return fleet.name_of(pid)


def row(name: str, found: list[float], timeout_s: float) -> str:
    """In Markdown: median and worst, in seconds and in worker timeouts."""
    median, worst = statistics.median(found), max(found)
    cells = [name, str(len(found)), f"{median:.2f} s", f"{worst:.2f} s"]
    return "| " + " | ".join([*cells, f"{median / timeout_s:.2f}", f"{worst / timeout_s:.2f}"]) + " |"


def main() -> int:
    """Measure and print. Exit code 1 when a recovery took longer than `RATIO_MAX` worker timeouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each role and of the controller")
    parser.add_argument("--worker-timeout-s", type=float, default=WORKER_TIMEOUT_S)
    arguments = parser.parse_args()
    timeout_s, slowest_s = arguments.worker_timeout_s, 0.0
    print(f"worker timeout {timeout_s:g} s\n")
    print("| killed | times | median | worst | median, timeouts | worst, timeouts |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in (*STATES, CONTROLLER):
            place = Path(folder, name)
            work = (
                of_controller(arguments.runs, place, timeout_s)
                if name == CONTROLLER
                else of_worker(name, arguments.runs, place, timeout_s)
            )
            found = asyncio.run(work)
            slowest_s = max(slowest_s, *found)
            print(row(name, found, timeout_s), flush=True)
    return 1 if slowest_s > RATIO_MAX * timeout_s else 0


if __name__ == "__main__":
    sys.exit(main())
