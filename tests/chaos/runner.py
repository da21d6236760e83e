"""One run: a fleet, its load, the plan's faults, and the account at the end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos import history, leaks
from tests.chaos.disks import Disks
from tests.chaos.faults import Injector
from tests.chaos.leaks import Sample
from tests.chaos.ledger import settle
from tests.chaos.load import Load
from tests.chaos.network import Network
from tests.chaos.plan import CONTROLLER, DISKS, Plan
from tests.chaos.report import Report, success_counts
from tests.chaos.stages import Stages
from tests.fleet.watched import WatchedFleet
from triptych.v1.job_pb2 import Job
from triptych_client import AsyncClient

Result = TypeVar("Result")

SETTLE_TIMEOUT_S = 240.0
"""After the last job was sent and the last fault was over, all must be over within this: many times what it takes."""
QUIET_TIMEOUT_S = 60.0
"""Connections that were cut off end by gRPC's keepalive, in half a minute; rooms are released at once."""


@dataclass
class Surroundings:
    """What only root has."""

    network: Network | None
    disks: Disks | None
    reason: str
    """Why there is none."""


async def run(plan: Plan, stages: Stages, folder: Path, reason: str, controller_flags: Sequence[str] = ()) -> Report:
    """Run a plan in `folder`. `reason` says why there are no namespaces; empty where this process is inside them."""
    started_s = time.monotonic()
    clock = _Clock()
    left: list[str] = []
    async with _surroundings(plan, folder, reason, left) as around:
        fleet = WatchedFleet(folder, plan.shape, stages.worker_flags, around.network, controller_flags)
        load = Load(fleet, stages, folder, clock.elapsed_s)
        injector = Injector(fleet, load, stages.other_model_flags, around.network, around.disks, reason)
        try:
            await fleet.open()
            before = Sample.of(fleet.pid(await fleet.active(CONTROLLER)))
            clock.start()
            jobs, found = await _work(plan, stages, injector, load, clock.elapsed_s)
            after, grown = await _quiet(fleet, before)
        finally:
            await fleet.close()
        left += found + grown + fleet.complaints + [f"arena {path.name}" for path in fleet.arenas()]
        left += [f"process {orphan}" for orphan in leaks.orphans(str(folder))]
        (folder / "faults.txt").write_text("\n".join(injector.log) + "\n")
        submissions = {s.request_id: stages.adapt(s) for s in plan.submissions}
        expected = {request_id: stages.digest(s) for request_id, s in submissions.items()}
        counts = sum((success_counts(folder / f"{name}.log") for name in fleet.controllers), Counter())
        account = settle(jobs, submissions, load.acknowledged, expected, counts)
        impairment = around.network.impairment if around.network else ""
        violations = history.check(load.events)
        if account.violations and around.disks:  # the disk goes with the namespace
            shutil.copytree(folder / "state", folder / "state-kept", dirs_exist_ok=True)
    return Report(
        plan.seed,
        account,
        injector.counts,
        injector.skipped,
        violations,
        left,
        time.monotonic() - started_s,
        impairment,
        f"{before}; then {after}",
        load.events,
        jobs,
    )


async def _work(
    plan: Plan, stages: Stages, injector: Injector, load: Load, elapsed_s: Callable[[], float]
) -> tuple[list[Job], list[str]]:
    """Jobs and faults until all are over; the controller's last list, and what went wrong with the run itself."""
    found = []
    submissions = [stages.adapt(submission) for submission in plan.submissions]
    async with load.open(plan.shape.clients):
        auditing = asyncio.create_task(load.audit())
        working = asyncio.create_task(load.run(submissions))
        try:
            await injector.run(plan.faults, elapsed_s)
            sending_s = max(0.0, plan.shape.seconds - elapsed_s())
            await asyncio.wait([working], timeout=sending_s + SETTLE_TIMEOUT_S)
        finally:
            is_done = working.done()
            for task in (working, auditing):
                task.cancel()
            results = await asyncio.gather(working, auditing, return_exceptions=True)
        found += [f"a client's call failed: {result!r}" for result in results if isinstance(result, Exception)]
        if not is_done:
            shown = ", ".join(sorted(load.unfinished)[:20])
            found.append(
                f"{len(load.unfinished)} jobs weren't over {SETTLE_TIMEOUT_S:g} s after the last fault: {shown}"
            )
        await load.download_again(submissions)
        jobs = await load.list_all()
    return jobs, found


async def _quiet(fleet: WatchedFleet, before: Sample) -> tuple[Sample, list[str]]:
    """Wait until the controller holds no more than before and no worker holds a room; what still does, after all."""
    async with AsyncClient(fleet.endpoint) as client:
        deadline_s = time.monotonic() + QUIET_TIMEOUT_S
        while True:
            after = Sample.of(fleet.pid(await fleet.active(CONTROLLER)))
            workers = (await client.get_fleet()).workers
            found = [f"the controller's {text}" for text in leaks.growth(before, after)]
            found += [
                f"rank {worker.rank} holds {worker.status.room_count} rooms"
                for worker in workers
                if worker.status.room_count
            ]
            if len(workers) != len(fleet.workers):
                found.append(f"{len(workers)} workers are registered, not {len(fleet.workers)}")
            if not found or time.monotonic() > deadline_s:
                return after, found
            await asyncio.sleep(1.0)


@asynccontextmanager
async def _surroundings(plan: Plan, folder: Path, reason: str, left: list[str]) -> AsyncIterator[Surroundings]:
    async with AsyncExitStack() as stack:
        if reason:
            yield Surroundings(None, None, reason)
            return
        network, disks = Network(plan.shape.workers), Disks(folder, DISKS)
        await network.open()
        stack.push_async_callback(_close_network, network, left)
        await disks.open()
        stack.push_async_callback(disks.close)
        yield Surroundings(network, disks, "")


async def _close_network(network: Network, left: list[str]) -> None:
    left += [f"namespace {name}" for name in await network.close()]


class _Clock:
    """Seconds since the plan began."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def start(self) -> None:
        self._started_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


def supervised(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end; SIGTERM cancels it, so that what it has started is stopped."""

    async def main() -> Result:
        task = asyncio.create_task(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    return asyncio.run(main())


def remove(folder: Path) -> None:
    """Delete the folder of a run that was right."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
