"""Several clients of one controller: turns, priorities, quotas, and who sees what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.services.conftest import Bench, OpenBench
from triptych.errors import AlreadyExists, BacklogFull, EncoderBusy, Full, InvalidRequest, QuotaFull, TriptychError
from triptych.rings.layout import Geometry
from triptych.security.identity import ANYONE, SCOPE_ADMIN, SCOPE_READ, SCOPE_SUBMIT, Identity, set_caller
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_QUEUED,
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NORMAL,
    GenerationRequest,
)

CLIENT = frozenset((SCOPE_SUBMIT, SCOPE_READ))
ALICE = Identity("alice", CLIENT)
BOB = Identity("bob", CLIENT)
OPERATOR = Identity("operator", frozenset((SCOPE_ADMIN,)))


# -- turns --------------------------------------------------------------------------------------------------------


async def test_clients_take_turns_and_priorities_come_first(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await bench.encoder()
        alice = [(await bench.create(ALICE)).job_id for _ in range(4)]
        bob = [(await bench.create(BOB)).job_id for _ in range(2)]
        low = (await bench.create(BOB, priority=PRIORITY_LOW)).job_id
        high = await bench.create(ALICE, priority=PRIORITY_HIGH)
        assert high.priority == PRIORITY_HIGH
        assert (await bench.core.ledger.get(low)).priority == PRIORITY_LOW
        expected = [high.job_id, alice[0], bob[0], alice[1], bob[1], alice[2], alice[3], low]
        assert await bench.claimed(rank) == expected


async def test_a_restart_keeps_the_order(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        alice = [(await bench.create(ALICE)).job_id for _ in range(3)]
        bob = (await bench.create(BOB)).job_id
        second = await bench.create(BOB)
        assert second.priority == PRIORITY_NORMAL
        high = (await bench.create(BOB, priority=PRIORITY_HIGH)).job_id
    async with open_bench() as bench:
        await bench.controller.holdings.recover()
        assert bench.core.ledger.job_counts["alice"] == 3
        expected = [high, alice[0], bob, alice[1], second.job_id, alice[2]]
        assert await bench.claimed(await bench.encoder()) == expected


async def test_a_job_that_is_over_no_longer_waits(open_bench: OpenBench) -> None:
    """A client that creates and cancels again and again, with no encoder there, must not fill the memory."""
    async with open_bench() as bench:
        for _ in range(20):
            job = await bench.create(ALICE)
            await bench.service.CancelJob(pb.CancelJobRequest(job_id=job.job_id), None)
        assert not bench.core.dispatcher._queues
        assert bench.core.ledger.job_counts["alice"] == 0


@pytest.mark.parametrize("role", [ROLE_TRANSFORMER, ROLE_DECODER])
async def test_nothing_new_is_begun_while_a_later_ring_is_deep(open_bench: OpenBench, role: Any) -> None:
    """The late client's job then waits for what is in the rings, and not for a ring full of somebody else's."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        for _ in range(6):
            await bench.create(ALICE)
        for number in range(2):
            await bench.rings[role].publish(Dispatch(job_id=f"before {number}"), 0)
        await bench.core.dispatcher.publish_waiting()
        assert bench.rings[ROLE_ENCODER].stats().ready_count == 0
        claimed = await bench.rings[role].claim(99)
        assert claimed is not None
        await bench.core.dispatcher.publish_waiting()
        assert bench.rings[ROLE_ENCODER].stats().ready_count == 2
        late = (await bench.create(BOB)).job_id
        assert (await bench.claimed(rank)).index(late) <= 3


async def test_a_full_ring_keeps_whose_turn_it_is(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await bench.encoder()
        ids = [(await bench.create(client)).job_id for client in (ALICE, ALICE, BOB)]
        ring = bench.rings[ROLE_ENCODER]
        leases = [ring.adopt(Dispatch(job_id=f"{n}"), rank) for n in range(Geometry().slot_count)]
        await bench.core.dispatcher.publish_waiting()
        assert not bench.core.dispatcher.work.is_set() or ring.stats().ready_count == 0
        for lease in leases:
            await ring.ack(lease)
        assert await bench.claimed(rank) == [ids[0], ids[2], ids[1]]


# -- identity -----------------------------------------------------------------------------------------------------


async def test_a_request_id_is_a_clients_own(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        first = await bench.create(ALICE, "mine", seed=1)
        other = await bench.create(BOB, "mine", seed=2)
        assert other.job_id != first.job_id
        assert (await bench.create(ALICE, "mine", seed=1)).job_id == first.job_id
        assert (await bench.create(BOB, "mine", seed=2)).job_id == other.job_id
        with pytest.raises(AlreadyExists):
            await bench.create(BOB, "mine", seed=1)
        assert (first.client, other.client) == ("alice", "bob")


async def test_a_quota_counts_a_clients_unfinished_jobs(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        bounded = Identity("alice", CLIENT, jobs_max=2)
        first = await bench.create(bounded, "first")
        await bench.create(bounded)
        with pytest.raises(QuotaFull, match="client 'alice' has 2 unfinished jobs") as refused:
            await bench.create(bounded)
        assert refused.value.retry_after_s > 0
        assert (await bench.create(bounded, "first")).job_id == first.job_id, "a retry is no new job"
        await bench.create(BOB)
        await bench.service.CancelJob(pb.CancelJobRequest(job_id=(await bench.list(BOB))[0]), None)
        set_caller(bounded)
        await bench.service.CancelJob(pb.CancelJobRequest(job_id=first.job_id), None)
        await bench.create(bounded)


@pytest.mark.parametrize(
    ("settings", "jobs_max", "error"), [({}, 3, QuotaFull), ({"backlog_jobs_max": 3}, 0, BacklogFull)]
)
async def test_calls_at_the_same_time_do_not_share_a_place(
    open_bench: OpenBench, settings: dict[str, int], jobs_max: int, error: type[Full]
) -> None:
    async with open_bench(**settings) as bench:
        await bench.encoder()
        bounded = Identity("alice", CLIENT, jobs_max=jobs_max)
        calls = [bench.create(bounded) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exception)]
        assert len(refused) == 17
        assert all(type(one) is error for one in refused)
        assert len(await bench.list(bounded)) == 3


async def test_what_is_refused_takes_no_place(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        bounded = Identity("alice", CLIENT, jobs_max=1)
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                await bench.create(bounded, priority=9)
        await bench.create(bounded)


# -- who sees what ------------------------------------------------------------------------------------------------


async def results_of(bench: Bench, job_id: str) -> dict[str, str]:
    """What each call that names a job ends with: its error's words, empty for none."""

    async def drain(stream: Any) -> None:
        async for _ in stream:
            return

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "GetJob": lambda: bench.service.GetJob(pb.GetJobRequest(job_id=job_id), None),
        "WatchJob": lambda: drain(bench.service.WatchJob(pb.WatchJobRequest(job_id=job_id), None)),
        "DownloadResult": lambda: drain(bench.service.DownloadResult(pb.DownloadResultRequest(job_id=job_id), None)),
        "RetryJob": lambda: bench.service.RetryJob(pb.RetryJobRequest(job_id=job_id), None),
        "CancelJob": lambda: bench.service.CancelJob(pb.CancelJobRequest(job_id=job_id), None),
    }
    found = {}
    for name, call in calls.items():
        try:
            await call()
            found[name] = ""
        except TriptychError as error:
            found[name] = str(error)
    return found


async def test_others_jobs_are_not_there(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        job = await bench.create(ALICE)
        set_caller(BOB)
        for job_id in (job.job_id, "job-of-nobody"):  # in the same words
            assert set((await results_of(bench, job_id)).values()) == {f"there is no job {job_id!r}"}
        assert await bench.list(BOB) == []
        assert (await bench.core.ledger.get(job.job_id)).state == JOB_STATE_QUEUED, "nobody has cancelled it"


@pytest.mark.parametrize("who", [ALICE, OPERATOR, ANYONE], ids=["its client", "an administrator", "nobody is asked"])
async def test_its_client_and_administrators_see_a_job(open_bench: OpenBench, who: Identity) -> None:
    async with open_bench() as bench:
        job = await bench.create(ALICE)
        own = await bench.create(who)
        assert await bench.list(who) == [own.job_id, job.job_id]
        found = await results_of(bench, job.job_id)
        assert found["GetJob"] == found["WatchJob"] == found["CancelJob"] == ""
        assert "only a job that SUCCEEDED has results" in found["DownloadResult"]
        assert "is no dead letter" in found["RetryJob"]
        assert (await bench.core.ledger.get(job.job_id)).state == JOB_STATE_CANCELLED


async def test_pages_hold_a_clients_own_jobs_only(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        mine = []
        for _ in range(5):
            mine.append((await bench.create(ALICE)).job_id)
            await bench.create(BOB)
        set_caller(ALICE)
        found = []
        token = ""
        while True:
            page = await bench.service.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token), None)
            found += [job.job_id for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert found == mine[::-1]


async def test_jobs_by_the_beginning_of_their_ids(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.encoder()
        mine = [(await bench.create(ALICE)).job_id for _ in range(40)]
        theirs = (await bench.create(BOB)).job_id
        for job_id in mine[:3]:
            beginning = job_id[:7]
            expected = [one for one in reversed(mine) if one.startswith(beginning)]
            assert await bench.list(ALICE, job_id_prefix=beginning) == expected
        assert await bench.list(ALICE, job_id_prefix="job-", page_size=1000) == mine[::-1]
        assert await bench.list(ALICE, job_id_prefix=theirs[:20]) == []
        assert await bench.list(BOB, job_id_prefix=theirs) == [theirs]
        for none in ("job-\x00", "%", "job_", mine[0] + "0", "JOB-", "\U0010ffff"):
            assert await bench.list(OPERATOR, job_id_prefix=none) == []


async def test_a_job_through_an_encoder_belongs_to_its_client(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await bench.encoder()
        bounded = Identity("alice", CLIENT, jobs_max=1)
        request = GenerationRequest(prompt="a circle")
        job = await bench.controller.lifecycle.start_direct(rank, "mine", request, bounded)
        assert await bench.claimed(rank) == [job.job_id]
        assert job.client == "alice"
        assert await bench.list(BOB) == []
        with pytest.raises(QuotaFull):
            await bench.create(bounded)


async def test_a_direct_job_goes_to_its_encoder_alone_and_one_at_a_time(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        mine, other = await bench.encoder(), await bench.encoder("another")
        ring, request = bench.rings[ROLE_ENCODER], GenerationRequest(prompt="a circle")

        async def start(request_id: str) -> str:
            return (await bench.controller.lifecycle.start_direct(mine, request_id, request, ANYONE)).job_id

        job_id = await start("one")
        assert await start("one") == job_id, "its answer may have been lost"
        with pytest.raises(EncoderBusy):
            await start("two")
        assert await ring.claim(other) is None
        claimed = await ring.claim(mine)
        assert claimed is not None
        assert claimed.dispatch.job_id == job_id
        assert await start("one") == job_id
        with pytest.raises(EncoderBusy):
            await start("two")
        await ring.ack(claimed.lease)
        assert await start("two") != job_id
        assert await ring.claim(other) is None
