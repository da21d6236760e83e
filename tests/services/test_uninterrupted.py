"""A caller that goes away leaves disk and memory of a job as one.

gRPC cancels a servicer when its client goes away or its deadline passes. Between a commit and what follows from it that
would leave a job accepted, say, and in no queue until the next restart.
"""

from __future__ import annotations

import asyncio

from services.controller import jobs
from tests.services.conftest import WAIT_S, Bench, slow_down
from triptych.v1.generation_service_pb2 import CancelJobRequest
from triptych.v1.job_pb2 import JOB_STATE_CANCELLED


async def test_an_accepted_job_is_queued(slow_bench: Bench) -> None:
    await slow_down(slow_bench).cut_off(asyncio.create_task(slow_bench.create(request_id="r-1")))
    async with asyncio.timeout(WAIT_S):
        await slow_bench.core.dispatcher.work.wait()
    (entry,) = slow_bench.core.ledger.active.values()
    assert entry.job.request_id == "r-1"


async def test_a_change_that_is_on_disk_is_believed(slow_bench: Bench) -> None:
    job_id = (await slow_bench.create()).job_id
    cancel = slow_bench.service.CancelJob(CancelJobRequest(job_id=job_id), None)
    await slow_down(slow_bench).cut_off(asyncio.ensure_future(cancel))
    async with asyncio.timeout(WAIT_S):
        async for update in slow_bench.core.ledger.watch(job_id):
            assert update.job.job_id == job_id
    stored = await slow_bench.journal.get(job_id)
    assert stored is not None
    assert stored.job.state == JOB_STATE_CANCELLED
    assert jobs.is_over(stored)
