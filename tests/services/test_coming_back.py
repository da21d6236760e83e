"""Workers that lose their stream, drain or are aimed at: no job is left where nobody looks for it."""

from __future__ import annotations

import asyncio
from typing import Any

from services.controller.dispatcher import AHEAD_PER_WORKER
from tests.services.conftest import Bench, OpenBench
from triptych import ids
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import (
    RING_PHASE1,
    RING_REQUEST,
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Dispatch,
    Role,
)
from triptych.v1.job_pb2 import JOB_STATE_ENCODED, Job
from triptych.v1.room_pb2 import RoomRef


async def register(bench: Bench, name: str, role: Role.ValueType, **fields: Any) -> fleet_pb.RegisterWorkerResponse:
    request = fleet_pb.RegisterWorkerRequest(instance_id=name, role=role, address="127.0.0.1:1", model=bench.model)
    request.MergeFrom(fleet_pb.RegisterWorkerRequest(**fields))
    return await bench.supervisor.register(request)


async def encode(bench: Bench, job: Job, rank: int, target: int = 0) -> tuple[Claimed, Dispatch]:
    """An encoder's phase up to and with its completion; what it claimed, and what it would publish next."""
    await bench.controller.dispatcher.publish_waiting()
    claimed = await bench.rings[RING_REQUEST].claim(rank)
    assert claimed is not None
    common: dict[str, Any] = {"job_id": job.job_id, "generation": claimed.dispatch.generation}
    await bench.controller.start_phase(fleet_pb.StartPhaseRequest(lease=claimed.lease, role=ROLE_ENCODER, **common))
    room = RoomRef(room_id=ids.room_id(rank, 1), size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
    room.owner_address = "127.0.0.1:1"
    after = Dispatch(role=ROLE_TRANSFORMER, room=room, sender_rank=rank, receiver_rank=target, **common)
    await bench.controller.complete_phase(
        fleet_pb.CompletePhaseRequest(lease=claimed.lease, role=ROLE_ENCODER, next=after, **common), ""
    )
    return claimed, after


async def time_passes(bench: Bench) -> None:
    for _ in range(3):
        await bench.supervisor.tick()
        await bench.controller.dispatcher.publish_waiting()


async def test_a_stream_that_breaks_between_completion_and_publication(open_bench: OpenBench) -> None:
    """The controller publishes what the worker drops, and ends the lease that it holds no longer."""
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER)).rank
        transformer = (await register(bench, "t", ROLE_TRANSFORMER)).rank
        job = await bench.create()
        claimed, after = await encode(bench, job, encoder)
        running = fleet_pb.RunningPhase(dispatch=claimed.dispatch, lease=claimed.lease)
        answer = await register(bench, "e", ROLE_ENCODER, running=running, room_ids=[after.room.room_id])
        assert not answer.HasField("adopted_lease")
        await time_passes(bench)
        assert bench.rings[RING_REQUEST].stats().leased_count == 0
        found = await bench.rings[RING_PHASE1].claim(transformer)
        assert found is not None
        assert found.dispatch.job_id == job.job_id
        assert found.dispatch.room == after.room


async def test_a_job_for_one_rank_that_hands_it_back_and_leaves(open_bench: OpenBench) -> None:
    """It waits for another then, in no state that looks as if somebody ran it."""
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER)).rank
        target = (await register(bench, "t1", ROLE_TRANSFORMER)).rank
        other = (await register(bench, "t2", ROLE_TRANSFORMER)).rank
        job = await bench.create(transformer_rank=target)
        claimed, after = await encode(bench, job, encoder, target)
        await bench.rings[RING_PHASE1].publish(after, target)
        await bench.rings[RING_REQUEST].ack(claimed.lease)
        taken = await bench.rings[RING_PHASE1].claim(target)
        assert taken is not None
        await bench.controller.start_phase(
            fleet_pb.StartPhaseRequest(lease=taken.lease, job_id=job.job_id, role=ROLE_TRANSFORMER)
        )
        await bench.rings[RING_PHASE1].nack(taken.lease)
        await bench.supervisor.bury(target, "it left")
        await time_passes(bench)
        assert (await bench.controller.ledger.get(job.job_id)).state == JOB_STATE_ENCODED
        found = await bench.rings[RING_PHASE1].claim(other)
        assert found is not None
        assert found.dispatch.job_id == job.job_id


async def test_jobs_for_one_rank_do_not_keep_the_others_idle(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER)).rank
        target = (await register(bench, "t1", ROLE_TRANSFORMER)).rank
        for number in range(3 * AHEAD_PER_WORKER):
            entry = Dispatch(job_id=f"job-{number}", role=ROLE_TRANSFORMER, receiver_rank=target)
            await bench.rings[RING_PHASE1].publish(entry, target)
        await bench.create()
        await time_passes(bench)
        assert await bench.rings[RING_REQUEST].claim(encoder) is not None


async def test_a_full_disk_is_no_stall(open_bench: OpenBench) -> None:
    """A worker that is done waits until the journal takes it; that is no reason to declare it dead."""
    async with open_bench(stall_timeout_s=0.05) as bench:
        rank = await bench.encoder()
        await bench.create()
        await bench.controller.dispatcher.publish_waiting()
        claimed = await bench.rings[RING_REQUEST].claim(rank)
        assert claimed is not None
        start = fleet_pb.StartPhaseRequest(
            lease=claimed.lease, job_id=claimed.dispatch.job_id, generation=0, role=ROLE_ENCODER
        )
        await bench.controller.start_phase(start)
        await asyncio.sleep(0.1)
        bench.journal.full_s = asyncio.get_running_loop().time()
        await bench.supervisor.tick()
        assert rank in bench.controller.fleet.members
        bench.journal.full_s = float("-inf")
        await bench.supervisor.tick()
        assert rank not in bench.controller.fleet.members
