"""Jobs that were tried too often: told from other failures, kept with every reason, tried again as another job."""

from __future__ import annotations

import time

import pytest

from tests.services.conftest import OpenBench
from triptych.errors import NotFound, QuotaFull, WrongState
from triptych.rings.recovery import PAST_CAP
from triptych.rings.ring import Removed
from triptych.security.identity import ANYONE, SCOPE_ADMIN, SCOPE_SUBMIT, Identity, set_caller
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Dispatch
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED, PRIORITY_HIGH, GenerationRequest, Job
from triptych.v1.ring_service_pb2 import Lease

ALICE = Identity("alice", frozenset((SCOPE_SUBMIT,)), jobs_max=1)


async def retry(bench: object, job_id: str, who: Identity = ANYONE) -> Job:
    set_caller(who)
    return (await bench.service.RetryJob(pb.RetryJobRequest(job_id=job_id), None)).job  # type: ignore[attr-defined]


async def test_a_dead_letter_is_tried_again_as_one_new_job(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=2) as bench:
        rank = await bench.encoder()
        job = await bench.create(ALICE, "mine", priority=PRIORITY_HIGH)
        assert not (await bench.fail(job, rank, "first")).dead_letter
        with pytest.raises(WrongState, match="is no dead letter"):
            await retry(bench, job.job_id)
        dead = await bench.fail(job, rank, "second")
        assert (dead.state, dead.dead_letter) == (JOB_STATE_FAILED, True)
        assert [(a.role, a.rank, a.reason) for a in dead.attempts] == [
            (ROLE_ENCODER, rank, "first"),
            (ROLE_ENCODER, rank, "second"),
        ]
        assert all(attempt.HasField("end_time") for attempt in dead.attempts)
        again = await retry(bench, job.job_id, ALICE)
        assert (again.retry_of, again.state, again.seed) == (job.job_id, JOB_STATE_QUEUED, job.seed)
        assert (again.client, again.priority, list(again.attempts)) == ("alice", PRIORITY_HIGH, [])
        requests = [await bench.journal.get_request(one.job_id) for one in (job, again)]
        assert requests[0] == requests[1]
        assert (await retry(bench, job.job_id, ALICE)).job_id == again.job_id, "a second retry is the first"
        assert await bench.core.ledger.get(job.job_id) == dead, "it stays what it was"
        assert await bench.claimed(rank) == [again.job_id]


async def test_only_dead_letters_are_listed_as_such_also_after_a_restart(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        dead = [(await bench.fail(await bench.create(), rank)).job_id for _ in range(3)]
        await bench.create()
        await bench.service.CancelJob(pb.CancelJobRequest(job_id=(await bench.create()).job_id), None)
        refused = await bench.create()
        await bench.controller.lifecycle.give_up(refused.job_id, JOB_STATE_FAILED, "the model refused it")
        assert await bench.list(dead_letters_only=True) == dead[::-1]
        again = await retry(bench, dead[0])
    async with open_bench() as bench:
        assert await bench.list(dead_letters_only=True) == dead[::-1]
        with pytest.raises(WrongState):
            await retry(bench, refused.job_id)
        assert (await retry(bench, dead[0])).job_id == again.job_id


async def test_a_retry_that_dies_can_be_retried_itself(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        first = await bench.fail(await bench.create(), rank)
        second = await bench.fail(await retry(bench, first.job_id), rank)
        third = await retry(bench, second.job_id)
        assert third.retry_of == second.job_id
        assert (await retry(bench, first.job_id)).job_id == second.job_id


async def test_what_cannot_be_met_any_more_is_left_out(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        request = GenerationRequest(prompt="a circle", seed=3)
        request.deadline_time.FromNanoseconds(time.time_ns() + 2 * 10**9)
        job = await bench.create(prompt="a circle", seed=3, deadline_time=request.deadline_time)
        dead = await bench.fail(job, rank)
        while time.time_ns() <= request.deadline_time.ToNanoseconds():
            await bench.controller.lifecycle.expire()
        again = await retry(bench, dead.job_id)
        assert not again.HasField("deadline_time")
        await bench.controller.lifecycle.expire()
        assert (await bench.core.ledger.get(again.job_id)).state == JOB_STATE_QUEUED


async def test_what_the_ring_gave_up_is_published_again(open_bench: OpenBench) -> None:
    """The journal counts attempts, and it has none."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        job = await bench.create()
        dispatch = Dispatch(job_id=job.job_id, generation=0, role=ROLE_ENCODER)
        bench.core.dispatcher.discard(job.job_id)
        bench.core.removed.append(Removed(Lease(), dispatch, PAST_CAP))
        await bench.controller.upkeep.tick()
        assert await bench.claimed(rank) == [job.job_id]


async def test_a_retry_is_its_clients_job_no_matter_who_asks(open_bench: OpenBench) -> None:
    operator = Identity("operator", frozenset((SCOPE_ADMIN,)), jobs_max=1)
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        dead = [await bench.fail(await bench.create(ALICE), rank) for _ in range(2)]
        await bench.create(operator)
        assert (await retry(bench, dead[0].job_id, operator)).client == "alice"
        with pytest.raises(QuotaFull):
            await retry(bench, dead[1].job_id, ALICE)
        with pytest.raises(NotFound):
            await retry(bench, dead[1].job_id, Identity("bob", frozenset((SCOPE_SUBMIT,))))
