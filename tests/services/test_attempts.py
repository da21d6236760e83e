"""Attempts count what failed while the job ran, and nothing else; the next one goes to somebody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.controller import attempts
from services.controller.attempts import UNCOUNTED_MAX
from tests.messages import heartbeat, registration, token_for
from tests.services.conftest import Bench, OpenBench
from triptych import ids
from triptych.config import ControllerConfig
from triptych.rings.ring import Claimed
from triptych.roles import NEXT
from triptych.security.identity import ANYONE
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import (
    ROLE_DECODER,
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Dispatch,
    Role,
)
from triptych.v1.job_pb2 import (
    ATTEMPT_KIND_GIVEN_UP,
    ATTEMPT_KIND_OUT_OF_MEMORY,
    ATTEMPT_KIND_ROOM_LOST,
    ATTEMPT_KIND_STAGE_ERROR,
    ATTEMPT_KIND_WORKER_DIED,
    ATTEMPT_KIND_WORKER_SICK,
    JOB_STATE_ENCODED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    Attempt,
    Job,
    TokensCut,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_pb2 import WORKER_STATE_DRAINING, WORKER_STATE_QUARANTINED

ATTEMPTS_MAX = ControllerConfig().attempts_max
OUT_OF_MEMORY = fleet_pb.FAILURE_REASON_OUT_OF_MEMORY
BYTES = {"needed_bytes": 80, "available_bytes": 24}


async def register(bench: Bench, name: str, role: Role.ValueType) -> int:
    request = registration(name, role, model=bench.model)
    return (await bench.controller.membership.register(request)).rank


async def take(bench: Bench, role: Role.ValueType, rank: int) -> Claimed | None:
    """Claim for a rank, and start what there is."""
    await bench.controller.upkeep.tick()
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[role].claim(rank)
    if claimed is not None:
        await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, role)))
    return claimed


async def must_take(bench: Bench, role: Role.ValueType, rank: int) -> Claimed:
    """As `take`, where there is something."""
    claimed = await take(bench, role, rank)
    assert claimed is not None
    return claimed


async def complete(
    bench: Bench, claimed: Claimed, role: Role.ValueType, number: int, tokens_cut: Sequence[TokensCut] = ()
) -> None:
    """Finish what was taken, publish for the next role, ack."""
    rank = claimed.lease.rank
    room = RoomRef(room_id=ids.room_id(rank, number), size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
    room.owner_address = "127.0.0.1:1"
    after = Dispatch(job_id=claimed.dispatch.job_id, generation=claimed.dispatch.generation, role=NEXT[role], room=room)
    after.sender_rank = rank
    request = fleet_pb.CompletePhaseRequest(next=after, tokens_cut=tokens_cut, token=token_for(claimed, role))
    await bench.controller.phases.complete(request)
    await bench.rings[NEXT[role]].publish(after, 0)
    await bench.rings[role].ack(claimed.lease)


async def fail(
    bench: Bench, claimed: Claimed, role: Role.ValueType, reason: Any, message: str = "it broke", **fields: int
) -> Job:
    token = token_for(claimed, role)
    request = fleet_pb.FailPhaseRequest(reason=reason, message=message, token=token, **fields)  # type: ignore[arg-type]
    await bench.controller.phases.fail(request)
    await bench.rings[role].ack(claimed.lease)
    return await bench.core.ledger.get(claimed.dispatch.job_id)


async def leave(bench: Bench, rank: int) -> None:
    await bench.controller.evictions.evict(rank, f"rank {rank} left", ATTEMPT_KIND_GIVEN_UP)


@asynccontextmanager
async def failed_once(
    open_bench: OpenBench, reason: Any = fleet_pb.FAILURE_REASON_STAGE_ERROR
) -> AsyncIterator[tuple[Bench, int, int]]:
    """A controller and two encoders, of which the first has failed the only job; the encoders' ranks."""
    async with open_bench() as bench:
        first, second = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        await bench.create()
        await fail(bench, await must_take(bench, ROLE_ENCODER, first), ROLE_ENCODER, reason)
        yield bench, first, second


def test_the_table_names_every_kind() -> None:
    kinds = {ATTEMPT_KIND_STAGE_ERROR, ATTEMPT_KIND_WORKER_DIED, ATTEMPT_KIND_OUT_OF_MEMORY}
    assert kinds | {0} == attempts.COUNTED
    for kind in (ATTEMPT_KIND_ROOM_LOST, ATTEMPT_KIND_GIVEN_UP, ATTEMPT_KIND_WORKER_SICK):
        assert attempts.counted(Job(attempts=[Attempt(kind=kind)])) == 0


async def test_encoders_that_leave_cost_a_waiting_job_nothing(open_bench: OpenBench) -> None:
    """With their rooms, more of them than `attempts_max`."""
    async with open_bench() as bench:
        job = await bench.create()
        for number in range(ATTEMPTS_MAX + 1):
            rank = await register(bench, f"e{number}", ROLE_ENCODER)
            claimed = await must_take(bench, ROLE_ENCODER, rank)
            await complete(bench, claimed, ROLE_ENCODER, number)
            assert (await bench.core.ledger.get(job.job_id)).state == JOB_STATE_ENCODED
            await leave(bench, rank)
        found = await bench.core.ledger.get(job.job_id)
        assert found.state == JOB_STATE_QUEUED
        assert {attempt.kind for attempt in found.attempts} == {ATTEMPT_KIND_ROOM_LOST}


async def test_entries_that_nobody_may_start_keep_no_encoder_idle(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        encoder = await register(bench, "e", ROLE_ENCODER)
        for number in range(4):
            await bench.rings[ROLE_TRANSFORMER].publish(Dispatch(job_id=f"over-{number}", role=ROLE_TRANSFORMER), 0)
        await bench.create()
        assert await take(bench, ROLE_ENCODER, encoder) is not None
        assert bench.rings[ROLE_TRANSFORMER].stats().ready_count == 0


async def test_drains_and_one_crash_make_no_dead_letter(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        job = await bench.create()
        for number in range(ATTEMPTS_MAX):
            rank = await register(bench, f"e{number}", ROLE_ENCODER)
            claimed = await must_take(bench, ROLE_ENCODER, rank)
            await bench.rings[ROLE_ENCODER].nack(claimed.lease)
            await leave(bench, rank)
            found = await bench.core.ledger.get(job.job_id)
            assert (found.state, len(found.attempts)) == (JOB_STATE_QUEUED, 0), "it waits, under nobody's lease"
        crashed = await register(bench, "crash", ROLE_ENCODER)
        assert await take(bench, ROLE_ENCODER, crashed) is not None
        await bench.controller.evictions.evict(crashed, "it was silent")
        found = await bench.core.ledger.get(job.job_id)
        assert (found.state, attempts.counted(found)) == (JOB_STATE_QUEUED, 1)


async def test_a_job_that_kills_its_workers_is_a_dead_letter_all_the_same(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        job = await bench.create()
        for number in range(ATTEMPTS_MAX):
            rank = await register(bench, f"e{number}", ROLE_ENCODER)
            assert await take(bench, ROLE_ENCODER, rank) is not None
            await bench.controller.evictions.evict(rank, "it was silent")
        found = await bench.core.ledger.get(job.job_id)
        assert (found.state, found.dead_letter) == (JOB_STATE_FAILED, True)
        assert found.error == f"gave up after {ATTEMPTS_MAX} attempts; the last: it was silent"


async def test_more_attempts_than_a_ring_can_count(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=300) as bench:
        job = await bench.create()
        for number in range(300):
            rank = await register(bench, f"e{number}", ROLE_ENCODER)
            assert await take(bench, ROLE_ENCODER, rank) is not None, number
            await bench.controller.evictions.evict(rank, "it was silent")
            await bench.controller.upkeep.tick()
        found = await bench.core.ledger.get(job.job_id)
        assert (found.state, attempts.counted(found)) == (JOB_STATE_FAILED, 300)


async def test_what_does_not_count_is_bounded_all_the_same(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        job = await bench.create()
        for _ in range(UNCOUNTED_MAX):
            claimed = await must_take(bench, ROLE_ENCODER, rank)
            found = await fail(bench, claimed, ROLE_ENCODER, fleet_pb.FAILURE_REASON_SOURCE_GONE, "the room is gone")
        assert found.job_id == job.job_id
        assert (found.state, found.dead_letter) == (JOB_STATE_FAILED, True)
        assert found.error == f"gave up after {UNCOUNTED_MAX} interruptions; the last: the room is gone"


@pytest.mark.parametrize("reason", [fleet_pb.FAILURE_REASON_STAGE_ERROR, fleet_pb.FAILURE_REASON_OUT_OF_MEMORY])
async def test_the_next_attempt_goes_elsewhere(open_bench: OpenBench, reason: Any) -> None:
    async with failed_once(open_bench, reason) as (bench, first, second):
        assert await take(bench, ROLE_ENCODER, first) is None, "it would be the first that is free"
        assert await take(bench, ROLE_ENCODER, second) is not None


async def test_where_nobody_else_is_left_anyone_may_try_again(open_bench: OpenBench) -> None:
    async with failed_once(open_bench) as (bench, first, second):
        assert await take(bench, ROLE_ENCODER, first) is None
        await bench.controller.evictions.evict(second, "it was silent")
        assert await take(bench, ROLE_ENCODER, first) is not None


@pytest.mark.parametrize("state", [WORKER_STATE_DRAINING, WORKER_STATE_QUARANTINED])
async def test_what_waits_for_one_that_stops_claiming_goes_to_others(open_bench: OpenBench, state: Any) -> None:
    async with failed_once(open_bench) as (bench, first, second):
        assert await take(bench, ROLE_ENCODER, first) is None
        bench.controller.membership.report(heartbeat(second, state=state))
        assert await take(bench, ROLE_ENCODER, first) is not None


async def test_a_decoder_that_can_not_fetch_does_not_get_the_job_again(open_bench: OpenBench) -> None:
    """The job goes back for its room; the transformer that denoises it again sends it to the other decoder."""
    async with open_bench() as bench:
        encoder = await register(bench, "e", ROLE_ENCODER)
        transformer = await register(bench, "t", ROLE_TRANSFORMER)
        sick, well = [await register(bench, name, ROLE_DECODER) for name in ("d1", "d2")]
        await bench.create()
        claimed = await must_take(bench, ROLE_ENCODER, encoder)
        await complete(bench, claimed, ROLE_ENCODER, 1)
        claimed = await must_take(bench, ROLE_TRANSFORMER, transformer)
        await complete(bench, claimed, ROLE_TRANSFORMER, 1)
        claimed = await must_take(bench, ROLE_DECODER, sick)
        job = await fail(bench, claimed, ROLE_DECODER, fleet_pb.FAILURE_REASON_SOURCE_GONE)
        assert (job.state, attempts.counted(job)) == (JOB_STATE_ENCODED, 0)
        claimed = await must_take(bench, ROLE_TRANSFORMER, transformer)
        assert claimed.dispatch.decoder_rank == well


async def test_a_rank_that_the_controller_chose_is_not_the_clients_wish(open_bench: OpenBench) -> None:
    """Whom a retry was sent to has failed it, too: the next goes to the one that has failed it less."""
    async with open_bench() as bench:
        encoder = await register(bench, "e", ROLE_ENCODER)
        first, second = [await register(bench, name, ROLE_TRANSFORMER) for name in ("t1", "t2")]
        await bench.create()
        claimed = await must_take(bench, ROLE_ENCODER, encoder)
        await complete(bench, claimed, ROLE_ENCODER, 1)
        for rank in (first, second, first):
            claimed = await must_take(bench, ROLE_TRANSFORMER, rank)
            await fail(bench, claimed, ROLE_TRANSFORMER, fleet_pb.FAILURE_REASON_STAGE_ERROR)


async def test_a_job_under_a_rank_that_is_no_more_is_taken_up_again(open_bench: OpenBench) -> None:
    """However it came to that."""
    async with open_bench() as bench:
        rank, other = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        job = await bench.create()
        assert await take(bench, ROLE_ENCODER, rank) is not None
        bench.core.fleet.remove(rank)
        claimed = await must_take(bench, ROLE_ENCODER, other)
        assert claimed.dispatch.job_id == job.job_id
        assert attempts.counted(await bench.core.ledger.get(job.job_id)) == 0


async def test_a_worker_whose_job_another_has_begun_is_told_to_stop(open_bench: OpenBench) -> None:
    """The ring took its lease back before it began: it would run to the end for nothing, and past a cancellation."""
    async with open_bench() as bench:
        slow, other = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        job = await bench.create()
        claimed = await must_take(bench, ROLE_ENCODER, slow)
        await bench.rings[ROLE_ENCODER].nack(claimed.lease)
        assert not bench.core.fleet.get(slow).take_orders().cancel_job_ids
        await must_take(bench, ROLE_ENCODER, other)
        assert list(bench.core.fleet.get(slow).take_orders().cancel_job_ids) == [job.job_id]
        assert not bench.core.fleet.get(other).take_orders().cancel_job_ids


async def test_what_was_handed_back_and_withdrawn_is_queued_again(open_bench: OpenBench) -> None:
    """It waits in the ring for a worker that claims nothing any more, and by the journal it still runs."""
    async with failed_once(open_bench) as (bench, first, second):
        claimed = await must_take(bench, ROLE_ENCODER, second)
        assert claimed.dispatch.receiver_rank == second
        await bench.rings[ROLE_ENCODER].nack(claimed.lease)
        bench.controller.membership.report(heartbeat(second, state=WORKER_STATE_QUARANTINED))
        await must_take(bench, ROLE_ENCODER, first)


async def test_too_little_memory_twice_ends_the_job(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        first, second = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        await bench.create()
        for rank in (first, second):
            claimed = await must_take(bench, ROLE_ENCODER, rank)
            job = await fail(bench, claimed, ROLE_ENCODER, OUT_OF_MEMORY, "80 GiB, of 24 GiB", **BYTES)
        ended = "encoders ran out of memory in 2 attempts; the last: 80 GiB, of 24 GiB"
        assert (job.state, job.error, job.dead_letter) == (JOB_STATE_FAILED, ended, True)
        assert [(a.rank, a.needed_bytes, a.available_bytes) for a in job.attempts] == [
            (first, 80, 24),
            (second, 80, 24),
        ]


async def test_each_role_may_run_out_of_memory_once(open_bench: OpenBench) -> None:
    """What one lacked says nothing of another."""
    async with open_bench() as bench:
        encoder = await register(bench, "e", ROLE_ENCODER)
        transformer = await register(bench, "t", ROLE_TRANSFORMER)
        await bench.create()
        await fail(bench, await must_take(bench, ROLE_ENCODER, encoder), ROLE_ENCODER, OUT_OF_MEMORY)
        await complete(bench, await must_take(bench, ROLE_ENCODER, encoder), ROLE_ENCODER, 1)
        for state in (JOB_STATE_ENCODED, JOB_STATE_FAILED):
            claimed = await must_take(bench, ROLE_TRANSFORMER, transformer)
            job = await fail(bench, claimed, ROLE_TRANSFORMER, OUT_OF_MEMORY)
            assert job.state == state
        assert job.error == "transformers ran out of memory in 2 attempts; the last: it broke"


async def test_bytes_are_taken_of_shortages_only(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.create()
        claimed = await must_take(bench, ROLE_ENCODER, rank)
        job = await fail(bench, claimed, ROLE_ENCODER, fleet_pb.FAILURE_REASON_STAGE_ERROR, **BYTES)
        assert (job.attempts[0].needed_bytes, job.attempts[0].available_bytes) == (0, 0)


def test_a_shortage_at_a_worker_that_is_well_after_all_is_one_again() -> None:
    attempt = Attempt(rank=1, kind=ATTEMPT_KIND_OUT_OF_MEMORY, available_bytes=24)
    other = Attempt(rank=1, kind=ATTEMPT_KIND_STAGE_ERROR)
    before = JournalEntry(job=Job(attempts=[attempt, other]))
    sick = attempts.absolve(before, 1, is_sick=True)
    assert [attempt.kind for attempt in sick.job.attempts] == [ATTEMPT_KIND_WORKER_SICK] * 2
    assert attempts.absolve(sick, 1, is_sick=False) == before


async def test_a_worker_is_not_given_what_runs_out_there_while_others_can_take_it(open_bench: OpenBench) -> None:
    """Where none can, it gets the job all the same: a job that nobody tries would wait for ever."""
    async with open_bench() as bench:
        small, large = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        bench.controller.membership.report(heartbeat(small, pixels_failed_min=2))
        await bench.create(num_frames=2)
        assert await take(bench, ROLE_ENCODER, small) is None
        claimed = await must_take(bench, ROLE_ENCODER, large)
        assert claimed.dispatch.receiver_rank == large
        await bench.create(num_frames=1)
        await must_take(bench, ROLE_ENCODER, small)
        await leave(bench, large)
        assert (await must_take(bench, ROLE_ENCODER, small)).dispatch.job_id == claimed.dispatch.job_id


async def test_a_worker_is_told_how_large_the_job_is(open_bench: OpenBench) -> None:
    """Also that of a dead letter's retry, and after the controller came back."""
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.create(num_frames=3)
        for _ in range(2):
            job = await fail(bench, await must_take(bench, ROLE_ENCODER, rank), ROLE_ENCODER, OUT_OF_MEMORY)
        await bench.controller.lifecycle.retry(job.job_id, ANYONE)
    async with open_bench() as bench:
        await bench.controller.holdings.recover()
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.core.dispatcher.publish_waiting()
        claimed = await bench.rings[ROLE_ENCODER].claim(rank)
        assert claimed is not None
        started = fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER))
        assert (await bench.controller.phases.start(started)).pixels == 3
