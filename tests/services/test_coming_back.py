"""Workers that lose their stream, drain or are aimed at: no job is left where nobody looks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.controller.dispatcher import AHEAD_PER_WORKER
from tests.messages import registration, token_for
from tests.services.conftest import WAIT_S, Bench, OpenBench, slow_down
from triptych import ids
from triptych.errors import LeaseLost
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import (
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Dispatch,
    Role,
)
from triptych.v1.job_pb2 import JOB_STATE_ENCODED, Job
from triptych.v1.room_pb2 import RoomRef


async def register(bench: Bench, name: str, role: Role.ValueType, **fields: Any) -> fleet_pb.RegisterWorkerResponse:
    request = registration(name, role, **{"model": bench.model, **fields})
    return await bench.controller.membership.register(request)


async def encode(bench: Bench, job: Job, rank: int, target: int = 0) -> tuple[Claimed, Dispatch]:
    """An encoder's phase up to and with its completion; what it claimed, and what it would publish next."""
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[ROLE_ENCODER].claim(rank)
    assert claimed is not None
    await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))
    return claimed, await complete(bench, claimed, rank, target)


async def complete(bench: Bench, claimed: Claimed, rank: int, target: int = 0) -> Dispatch:
    """An encoder's completion of what it claimed; what it would publish next."""
    common: dict[str, Any] = {"job_id": claimed.dispatch.job_id, "generation": claimed.dispatch.generation}
    room = RoomRef(room_id=ids.room_id(rank, 1), size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
    room.owner_address = "127.0.0.1:1"
    after = Dispatch(role=ROLE_TRANSFORMER, room=room, sender_rank=rank, receiver_rank=target, **common)
    await bench.controller.phases.complete(
        fleet_pb.CompletePhaseRequest(token=token_for(claimed, ROLE_ENCODER), next=after)
    )
    return after


async def time_passes(bench: Bench) -> None:
    for _ in range(3):
        await bench.controller.upkeep.tick()
        await bench.core.dispatcher.publish_waiting()


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
        assert bench.rings[ROLE_ENCODER].stats().leased_count == 0
        found = await bench.rings[ROLE_TRANSFORMER].claim(transformer)
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
        await bench.rings[ROLE_TRANSFORMER].publish(after, target)
        await bench.rings[ROLE_ENCODER].ack(claimed.lease)
        taken = await bench.rings[ROLE_TRANSFORMER].claim(target)
        assert taken is not None
        await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(taken, ROLE_TRANSFORMER)))
        await bench.rings[ROLE_TRANSFORMER].nack(taken.lease)
        await bench.controller.evictions.evict(target, "it left")
        await time_passes(bench)
        assert (await bench.core.ledger.get(job.job_id)).state == JOB_STATE_ENCODED
        found = await bench.rings[ROLE_TRANSFORMER].claim(other)
        assert found is not None
        assert found.dispatch.job_id == job.job_id


async def test_jobs_for_one_rank_do_not_keep_the_others_idle(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER)).rank
        target = (await register(bench, "t1", ROLE_TRANSFORMER)).rank
        for number in range(3 * AHEAD_PER_WORKER):
            entry = Dispatch(job_id=f"job-{number}", role=ROLE_TRANSFORMER, receiver_rank=target)
            await bench.rings[ROLE_TRANSFORMER].publish(entry, target)
        await bench.create()
        await time_passes(bench)
        assert await bench.rings[ROLE_ENCODER].claim(encoder) is not None


async def test_a_full_disk_is_no_stall(open_bench: OpenBench) -> None:
    """A worker that is done waits until the journal takes it; that is no reason to declare it dead."""
    async with open_bench(stall_timeout_s=0.05) as bench:
        rank = await bench.encoder()
        await bench.create()
        await bench.core.dispatcher.publish_waiting()
        claimed = await bench.rings[ROLE_ENCODER].claim(rank)
        assert claimed is not None
        start = fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER))
        await bench.controller.phases.start(start)
        await asyncio.sleep(0.1)
        bench.journal.full_s = float("inf")
        await bench.controller.upkeep.tick()
        assert rank in bench.core.fleet.members
        bench.journal.full_s = float("-inf")
        await bench.controller.upkeep.tick()
        assert rank not in bench.core.fleet.members


@pytest.mark.parametrize("phase", ["start", "completion"])
async def test_what_is_being_written_when_its_worker_is_evicted(slow_bench: Bench, phase: str) -> None:
    """The controller was stopped, say, and wakes to a worker's call and to its long silence at the same time."""
    bench = slow_bench
    first = (await register(bench, "e1", ROLE_ENCODER)).rank
    job = await bench.create()
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[ROLE_ENCODER].claim(first)
    assert claimed is not None
    start = fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER))
    if phase == "completion":
        await bench.controller.phases.start(start)
    journal = slow_down(bench)
    if phase == "start":
        call: asyncio.Task[object] = asyncio.create_task(bench.controller.phases.start(start))
    else:
        call = asyncio.create_task(complete(bench, claimed, first))
    await asyncio.wait_for(journal.written.wait(), WAIT_S)
    burial = asyncio.create_task(bench.controller.evictions.evict(first, "it was silent"))
    await asyncio.sleep(0)
    journal.go_on.set()
    await asyncio.gather(call, burial)
    second = (await register(bench, "e2", ROLE_ENCODER)).rank
    await time_passes(bench)
    assert await begin(bench, second) == job.job_id, "the room died with its worker, so it is encoded again"


async def begin(bench: Bench, rank: int) -> str:
    """What an encoder claims and may start; what is of the past it drops. Empty when there is nothing."""
    while (found := await bench.rings[ROLE_ENCODER].claim(rank)) is not None:
        start = fleet_pb.StartPhaseRequest(token=token_for(found, ROLE_ENCODER))
        try:
            await bench.controller.phases.start(start)
        except LeaseLost:
            await bench.rings[ROLE_ENCODER].ack(found.lease)
            await time_passes(bench)
            continue
        return found.dispatch.job_id
    return ""


async def test_what_is_being_written_when_its_worker_comes_back_without_it(slow_bench: Bench) -> None:
    bench = slow_bench
    encoder = (await register(bench, "e", ROLE_ENCODER)).rank
    transformer = (await register(bench, "t", ROLE_TRANSFORMER)).rank
    job = await bench.create()
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[ROLE_ENCODER].claim(encoder)
    assert claimed is not None
    await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))
    journal = slow_down(bench)
    call = asyncio.create_task(complete(bench, claimed, encoder))
    await asyncio.wait_for(journal.written.wait(), WAIT_S)
    running = fleet_pb.RunningPhase(dispatch=claimed.dispatch, lease=claimed.lease)
    back = asyncio.create_task(register(bench, "e", ROLE_ENCODER, running=running, room_ids=[ids.room_id(encoder, 1)]))
    await asyncio.sleep(0)
    journal.go_on.set()
    await asyncio.gather(call, back)
    await time_passes(bench)
    found = await bench.rings[ROLE_TRANSFORMER].claim(transformer)
    assert found is not None
    assert found.dispatch.job_id == job.job_id
