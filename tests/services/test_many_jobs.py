"""Ten thousand unfinished jobs: whatever looks at all of them lets others be served meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from services.controller import attempts
from services.controller.fleet_service import FleetServicer
from services.controller.journal_database import Database
from services.controller.journal_file import kept_bytes
from tests.services.conftest import Bench, OpenBench
from triptych.errors import FAILURE_CHARS_MAX
from triptych.security.identity import ANYONE, set_caller
from triptych.telemetry.loop_watch import HOLD_MAX_S, Hold, watch_of
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.job_pb2 import (
    ATTEMPT_KIND_GIVEN_UP,
    JOB_STATE_ENCODED,
    JOB_STATE_QUEUED,
    Attempt,
    GenerationRequest,
    Job,
)
from triptych.v1.journal_pb2 import JournalEntry

JOBS = 10_000
NOBODY: Any = None
FOREIGN = "b" * 64
ROOM_RANK = 500


def entry(number: int, digest: str) -> JournalEntry:
    """A job that waits: of eight, one for a transformer. One in ten has failed as often as a job may."""
    job = Job(job_id=f"job-{number:05}", request_id=f"r-{number}", client=f"token:c{number % 7}", model_digest=digest)
    job.model = "toy"
    job.state = JOB_STATE_QUEUED if number % 8 else JOB_STATE_ENCODED
    job.create_time.GetCurrentTime()
    job.deadline_time.seconds = job.create_time.seconds + 3600
    if number % 10 == 0 or number >= JOBS - 1000:
        reason = "x" * FAILURE_CHARS_MAX
        job.attempts.extend([Attempt(kind=ATTEMPT_KIND_GIVEN_UP, reason=reason)] * attempts.UNCOUNTED_MAX)
    result = JournalEntry(job=job)
    if job.state == JOB_STATE_ENCODED:
        result.phase1.job_id = job.job_id
        result.phase1.room.room_id = number
        result.phase1.room.owner_rank = ROOM_RANK
    return result


async def fill(bench: Bench) -> None:
    """The journal as if all had been accepted."""
    rows = []
    for number in range(JOBS):
        one = entry(number, bench.model.config_digest if number % 5 else FOREIGN)
        job = one.job
        rows.append((job.job_id, job.client, job.request_id, job.state, kept_bytes(one), one.SerializeToString()))

    def insert(db: Database) -> None:
        columns = "job_id, client, request_id, state, kept_bytes, entry, dead"
        for row in rows:
            db.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, 0)", row)

    await bench.journal.run(insert)


async def held(call: Callable[[], Awaitable[object]]) -> Hold:
    """The longest hold of the loop while a call runs."""
    watch = watch_of(asyncio.get_running_loop())
    await asyncio.sleep(0)  # what the test itself did before doesn't count
    watch.longest = Hold()
    await asyncio.create_task(_run(call))
    return watch.longest


async def _run(call: Callable[[], Awaitable[object]]) -> None:
    set_caller(ANYONE)
    await call()


async def listed(bench: Bench) -> int:
    """How many jobs there are on all pages."""
    found = set[str]()
    token = ""
    while True:
        page = await bench.service.ListJobs(pb.ListJobsRequest(page_size=1000, page_token=token), NOBODY)
        found.update(job.job_id for job in page.jobs)
        token = page.next_page_token
        if not token:
            return len(found)


async def test_no_part_of_the_controller_holds_the_loop(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await fill(bench)
        core = bench.core
        controller = bench.controller
        service = bench.service
        upkeep = controller.upkeep
        evict = controller.evictions.evict
        fleet = FleetServicer(controller, "")
        found: dict[str, Hold] = {}

        async def look(name: str, call: Callable[[], Awaitable[object]]) -> None:
            found[name] = await held(call)

        async def sync(call: Callable[[], object]) -> None:
            call()

        await look("recover", controller.holdings.recover)
        assert len(core.ledger.active) == JOBS
        encoder = await bench.encoder()
        await look("register", bench.encoder)
        await look("tick", upkeep.tick)
        for number in range(4):  # a ring each
            await look(f"tick {number}", upkeep.tick)
        await look("stalled", upkeep._evict_stalled)
        await look("expire", controller.lifecycle.expire)
        await look("publish", core.dispatcher.publish_waiting)
        await look("GetFleet", lambda: fleet.GetFleet(fleet_pb.GetFleetRequest(), NOBODY))
        await look("ListJobs", lambda: service.ListJobs(pb.ListJobsRequest(page_size=1000), NOBODY))
        assert await listed(bench) == JOBS
        await look("start over", lambda: sync(core.dispatcher.start_over))
        await look("withdraw", lambda: sync(core.dispatcher.withdraw))
        await look("evict", lambda: evict(ROOM_RANK, "gone"))
        await look("room's owner", lambda: controller.holdings.settle_rooms(ROOM_RANK + 1, set()))
        await look("a death", lambda: evict(encoder, "gone"))
        await look("discard", lambda: controller.lifecycle.discard(FOREIGN))
        for name, hold in found.items():
            print(f"HOLD {name:16} {hold}")
        assert {name: str(hold) for name, hold in found.items() if hold.cpu_s > HOLD_MAX_S} == {}


async def test_a_large_request_is_written_and_read_elsewhere(open_bench: OpenBench) -> None:
    """Its copies and its digest take the journal's thread, not the event loop."""
    async with open_bench() as bench:
        request = GenerationRequest(prompt="a circle", seed=3)
        request.media.add(name="image", data=bytes(48 * 2**20))
        added = await held(lambda: bench.journal.add(JournalEntry(job=Job(job_id="job-1")), request))
        assert request.seed == 3
        read = await held(lambda: bench.journal.get_request("job-1"))
        assert max(added.cpu_s, read.cpu_s) < HOLD_MAX_S / 4, (str(added), str(read))
