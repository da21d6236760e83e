"""What a worker that turns out to be sick has failed doesn't count; one that is well after all, has."""

from __future__ import annotations

from services.controller import attempts
from tests.messages import heartbeat
from tests.services.conftest import OpenBench
from tests.services.test_attempts import fail, register, take
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_SICK, JOB_STATE_QUEUED
from triptych.v1.worker_pb2 import WORKER_STATE_DRAINING, WORKER_STATE_IDLE, WORKER_STATE_QUARANTINED


async def some_failed(bench: object, rank: int, count: int) -> list[str]:
    """So many jobs, each failed once by a rank."""
    found = []
    for _ in range(count):
        await bench.create()  # type: ignore[attr-defined]
    for _ in range(count):
        claimed = await take(bench, ROLE_ENCODER, rank)  # type: ignore[arg-type]
        assert claimed is not None
        await fail(bench, claimed, ROLE_ENCODER, fleet_pb.FAILURE_REASON_STAGE_ERROR)  # type: ignore[arg-type]
        found.append(claimed.dispatch.job_id)
    return found


async def test_quarantine_and_return(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        sick = await register(bench, "sick", ROLE_ENCODER)
        await register(bench, "well", ROLE_ENCODER)
        job_ids = await some_failed(bench, sick, 3)
        state = heartbeat(sick, state=WORKER_STATE_QUARANTINED, waiting_for="3 jobs failed")
        bench.controller.membership.report(state)
        await bench.controller.upkeep.tick()
        for job_id in job_ids:
            assert attempts.counted(await bench.core.ledger.get(job_id)) == 0
        (worker,) = [m.describe() for m in bench.core.fleet.registered() if m.rank == sick]
        assert (worker.status.state, worker.status.waiting_for) == (WORKER_STATE_QUARANTINED, "3 jobs failed")
        bench.controller.membership.report(heartbeat(sick, state=WORKER_STATE_IDLE))
        await bench.controller.upkeep.tick()
        for job_id in job_ids:
            assert attempts.counted(await bench.core.ledger.get(job_id)) == 1


async def test_one_that_ends_in_quarantine(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        sick = await register(bench, "sick", ROLE_ENCODER)
        await register(bench, "well", ROLE_ENCODER)
        job_ids = await some_failed(bench, sick, 3)
        for state in (WORKER_STATE_QUARANTINED, WORKER_STATE_DRAINING):
            bench.controller.membership.report(heartbeat(sick, state=state))
            await bench.controller.upkeep.tick()
        await bench.controller.evictions.evict(sick, "rank 1 is broken: it fails everything", ATTEMPT_KIND_WORKER_SICK)
        await bench.controller.upkeep.tick()
        for job_id in job_ids:
            job = await bench.core.ledger.get(job_id)
            assert (job.state, attempts.counted(job)) == (JOB_STATE_QUEUED, 0)
            assert [attempt.kind for attempt in job.attempts] == [ATTEMPT_KIND_WORKER_SICK]


async def test_what_was_failed_before_a_success_counts(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        sick = await register(bench, "sick", ROLE_ENCODER)
        await register(bench, "well", ROLE_ENCODER)
        (before,) = await some_failed(bench, sick, 1)
        bench.core.quarantine.succeeded(sick)
        (after,) = await some_failed(bench, sick, 1)
        bench.controller.membership.report(heartbeat(sick, state=WORKER_STATE_QUARANTINED))
        await bench.controller.upkeep.tick()
        counts = [attempts.counted(await bench.core.ledger.get(job_id)) for job_id in (before, after)]
        assert counts == [1, 0]
