"""Steps as clients see them: a finished denoise shows all of them, and within an attempt none goes back."""

from __future__ import annotations

import asyncio

from services.controller.ledger import Ledger
from tests.messages import heartbeat, token_for
from tests.services.conftest import WAIT_S, Bench, OpenBench
from tests.services.test_coming_back import encode, register
from triptych import ids
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED, JOB_STATE_DENOISED, JOB_STATE_ENCODED, Job
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_pb2 import StepProgress

STEPS = 16


async def denoising(bench: Bench) -> tuple[Job, Claimed]:
    """A job that a transformer runs."""
    encoder = (await register(bench, "e", ROLE_ENCODER)).rank
    rank = (await register(bench, "t", ROLE_TRANSFORMER)).rank
    job = await bench.create()
    _claimed, after = await encode(bench, job, encoder)
    await bench.rings[ROLE_TRANSFORMER].publish(after, 0)
    claimed = await bench.rings[ROLE_TRANSFORMER].claim(rank)
    assert claimed is not None
    await bench.controller.phases.start(pb.StartPhaseRequest(token=token_for(claimed, ROLE_TRANSFORMER)))
    return job, claimed


def report(bench: Bench, claimed: Claimed, step: int) -> None:
    progress = StepProgress(job_id=claimed.dispatch.job_id, step=step, step_count=STEPS)
    bench.controller.membership.report(heartbeat(claimed.lease.rank, progress=progress))


async def complete(bench: Bench, claimed: Claimed) -> None:
    rank = claimed.lease.rank
    room = RoomRef(room_id=ids.room_id(rank, 1), size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
    room.owner_address = "127.0.0.1:1"
    after = Dispatch(job_id=claimed.dispatch.job_id, role=ROLE_DECODER, room=room, sender_rank=rank)
    request = pb.CompletePhaseRequest(next=after, step_count=STEPS, token=token_for(claimed, ROLE_TRANSFORMER))
    await bench.controller.phases.complete(request)


async def watched(ledger: Ledger, job_id: str) -> tuple[int, int, int]:
    """What a watcher who comes now sees first: state, step, steps."""
    async with asyncio.timeout(WAIT_S):
        async for response in ledger.watch(job_id):
            return response.job.state, response.job.step, response.job.step_count
    raise AssertionError("a watch begins with the job")


async def test_a_denoise_that_is_done_shows_all_its_steps(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        job, claimed = await denoising(bench)
        for step in (13, 14, 12):  # the last steps' reports were never sent, and one comes late
            report(bench, claimed, step)
        assert (await bench.core.ledger.get(job.job_id)).step == 14
        await complete(bench, claimed)
        report(bench, claimed, 14)
        assert await watched(bench.core.ledger, job.job_id) == (JOB_STATE_DENOISED, STEPS, STEPS)


async def test_an_attempt_that_ended_leaves_no_steps(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        job, claimed = await denoising(bench)
        report(bench, claimed, 14)
        await bench.controller.evictions.evict(claimed.lease.rank, "it is gone", ATTEMPT_KIND_WORKER_DIED)
        state, step, _count = await watched(bench.core.ledger, job.job_id)
        assert (state, step) == (JOB_STATE_ENCODED, 0)
