"""Jobs belong to the model that they were accepted for: another never gets them, and they never get lost."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Any

import pytest

from services.controller.fleet_service import FleetServicer
from tests.messages import ADDRESS, registration, token_for
from tests.services.conftest import WAIT_S, Bench, OpenBench, slow_down
from triptych import ids
from triptych.errors import InvalidRequest, LeaseLost, Unavailable, WrongState
from triptych.rings.ring import Claimed
from triptych.roles import NEXT, RING_OF
from triptych.security.identity import ANYONE, SCOPE_READ, SCOPE_SUBMIT, Identity, set_caller
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Role
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DECODING,
    JOB_STATE_DENOISED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODED,
    JOB_STATE_ENCODING,
    JOB_STATE_EXPIRED,
    JOB_STATE_QUEUED,
    GenerationRequest,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import INPUT_KIND_TEXT, ModelDescription
from triptych.v1.room_pb2 import RoomRef

OTHER = ModelDescription(model="other", config_digest="feedfacecafe" * 2)
OTHER.inputs.add(name="prompt", kind=INPUT_KIND_TEXT)
ALICE = Identity("alice", frozenset((SCOPE_SUBMIT, SCOPE_READ)))
REACHED = (
    (JOB_STATE_QUEUED, 0),
    (JOB_STATE_ENCODING, 1),
    (JOB_STATE_ENCODED, 2),
    (JOB_STATE_DENOISING, 3),
    (JOB_STATE_DENOISED, 4),
    (JOB_STATE_DECODING, 5),
)
"""Every state that a job can be in before it is over, and how many calls of workers bring it there."""


async def join(bench: Bench, role: Role.ValueType, model: ModelDescription, name: str = "", **fields: Any) -> int:
    """Register a worker of a model; its rank."""
    set_caller(ANYONE)
    request = registration(name or f"{model.model} {role}", role, model=model, **fields)
    return (await bench.controller.membership.register(request)).rank


async def leave(bench: Bench) -> None:
    """All workers go in good order."""
    for rank in list(bench.core.fleet.members):
        await bench.controller.evictions.evict(rank, f"rank {rank} left")


async def take(bench: Bench, role: Role.ValueType, rank: int) -> Claimed | None:
    """What a worker claims, after everything was published that should be."""
    for _ in range(2):
        await bench.controller.upkeep.tick()
        await bench.core.dispatcher.publish_waiting()
    return await bench.rings[role].claim(rank)


async def bring(bench: Bench, call_count: int, ranks: dict[Role.ValueType, int]) -> None:
    """Start and complete phases, as many calls as are asked for, publishing in between."""
    role: Role.ValueType = ROLE_ENCODER
    for number in range(call_count):
        if number % 2 == 0:
            claimed = await take(bench, role, ranks[role])
            assert claimed is not None
            await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, role)))
            continue
        rank = ranks[role]
        room = RoomRef(room_id=ids.room_id(rank, 1), size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
        room.owner_address = ADDRESS
        named = {"job_id": claimed.dispatch.job_id, "generation": claimed.dispatch.generation}
        after = Dispatch(role=NEXT[role], room=room, sender_rank=rank, **named)
        await bench.controller.phases.complete(
            fleet_pb.CompletePhaseRequest(next=after, token=token_for(claimed, role))
        )
        await bench.rings[NEXT[role]].publish(after, 0)
        await bench.rings[role].ack(claimed.lease)
        role = NEXT[role]


async def fleet_of(bench: Bench, model: ModelDescription) -> dict[Role.ValueType, int]:
    return {role: await join(bench, role, model) for role in RING_OF}


async def nothing_for(bench: Bench, ranks: dict[Role.ValueType, int]) -> bool:
    return not any([await take(bench, role, rank) for role, rank in ranks.items()])


async def get_fleet(bench: Bench, who: Identity = ANYONE) -> fleet_pb.GetFleetResponse:
    set_caller(who)
    return await FleetServicer(bench.controller, "").GetFleet(fleet_pb.GetFleetRequest(), None)


async def discard(bench: Bench, digest: str) -> int:
    return (await bench.service.DiscardJobs(pb.DiscardJobsRequest(model_digest=digest), None)).job_count


@pytest.mark.parametrize(("state", "call_count"), REACHED)
async def test_a_model_that_is_swapped_while_the_fleet_lives(
    open_bench: OpenBench, state: JobState.ValueType, call_count: int
) -> None:
    """Wherever the job is: the other model's workers never get it, and its own model's take it up again."""
    async with open_bench() as bench:
        ranks = await fleet_of(bench, bench.model)
        job = await bench.create()
        await bring(bench, call_count, ranks)
        assert (await bench.core.ledger.get(job.job_id)).state == state
        await leave(bench)
        others = await fleet_of(bench, OTHER)
        assert await nothing_for(bench, others)
        waiting = await bench.core.ledger.get(job.job_id)
        assert waiting.state == JOB_STATE_QUEUED
        assert (waiting.model, waiting.model_digest) == (bench.model.model, bench.model.config_digest)
        own = await bench.create()
        claimed = await take(bench, ROLE_ENCODER, others[ROLE_ENCODER])
        assert claimed is not None
        assert claimed.dispatch.job_id == own.job_id, "what was accepted since is the fleet's own"
        await leave(bench)
        back = await join(bench, ROLE_ENCODER, bench.model, "back")
        claimed = await take(bench, ROLE_ENCODER, back)
        assert claimed is not None
        assert claimed.dispatch.job_id == job.job_id
        await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))


@pytest.mark.parametrize(("state", "call_count"), REACHED)
async def test_a_restart_with_another_model(
    open_bench: OpenBench, state: JobState.ValueType, call_count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """On the same state folder; the first model's workers are gone and time out."""
    async with open_bench() as bench:
        job = await bench.create()
        await bring(bench, call_count, await fleet_of(bench, bench.model))
    async with open_bench() as bench:
        own = bench.model
        await bench.controller.holdings.recover()
        assert (await bench.core.ledger.get(job.job_id)).state == state
        if call_count:
            with pytest.raises(Unavailable, match="may yet come back"):
                await join(bench, ROLE_ENCODER, OTHER)
        await silence(bench)
        with caplog.at_level(logging.WARNING):
            others = await fleet_of(bench, OTHER)
        sentence = f"1 job waits for the model 'toy' (digest {own.config_digest[:12]}), which this fleet doesn't serve"
        assert sentence in caplog.text
        assert "`--model toy`" in caplog.text
        assert await nothing_for(bench, others)
        (waiting,) = (await get_fleet(bench)).waiting_models
        assert (waiting.model, waiting.model_digest, waiting.job_count) == ("toy", own.config_digest, 1)
        caplog.clear()
    async with open_bench() as bench:
        bench.core.model.present = OTHER  # as a controller reads it from its journal
        with caplog.at_level(logging.WARNING):
            await bench.controller.holdings.recover()
        assert sentence in caplog.text, "also said at the next start"
        await silence(bench)
        encoder = await join(bench, ROLE_ENCODER, bench.model, "back")
        claimed = await take(bench, ROLE_ENCODER, encoder)
        assert claimed is not None
        assert claimed.dispatch.job_id == job.job_id
        assert not (await get_fleet(bench)).waiting_models


async def silence(bench: Bench) -> None:
    """The ranks that the journal names haven't been heard of for so long that they count as dead."""
    for member in bench.core.fleet.members.values():
        member.seen_s -= 2 * bench.core.config.worker_timeout_s
    await bench.controller.upkeep.tick()
    assert not bench.core.fleet.members


async def test_order_is_kept_over_a_swap(open_bench: OpenBench) -> None:
    """Some of them were in the request ring already."""
    async with open_bench() as bench:
        await join(bench, ROLE_ENCODER, bench.model)
        jobs = [(await bench.create()).job_id for _ in range(5)]
        await bench.core.dispatcher.publish_waiting()
        assert bench.rings[ROLE_ENCODER].stats().ready_count == 2
        await leave(bench)
        await join(bench, ROLE_ENCODER, OTHER)
        assert bench.rings[ROLE_ENCODER].stats().ready_count == 0
        await leave(bench)
        assert await bench.claimed(await join(bench, ROLE_ENCODER, bench.model)) == jobs


async def test_what_waits_for_another_model_can_be_ended_in_every_way(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await join(bench, ROLE_ENCODER, bench.model)
        deadline = GenerationRequest().deadline_time
        deadline.GetCurrentTime()
        deadline.FromNanoseconds(deadline.ToNanoseconds() + 10**8)
        cancelled = await bench.create()
        expiring = await bench.create(deadline_time=deadline)
        discarded = [(await bench.create()).job_id for _ in range(3)]
        of_alice = await bench.create(ALICE)
        with pytest.raises(WrongState, match="the fleet serves 'toy'"):
            await discard(bench, bench.model.config_digest)
        await leave(bench)
        await join(bench, ROLE_ENCODER, OTHER)
        seen = bench.core.ledger.watch(cancelled.job_id)
        assert (await anext(seen)).job.state == JOB_STATE_QUEUED
        set_caller(ANYONE)
        await bench.service.CancelJob(pb.CancelJobRequest(job_id=cancelled.job_id), None)
        assert (await asyncio.wait_for(anext(seen), WAIT_S)).job.state == JOB_STATE_CANCELLED
        await seen.aclose()
        async with asyncio.timeout(WAIT_S):
            while (await bench.core.ledger.get(expiring.job_id)).state == JOB_STATE_QUEUED:
                await bench.controller.lifecycle.expire()
        assert (await bench.core.ledger.get(expiring.job_id)).state == JOB_STATE_EXPIRED
        assert [one.job_count for one in (await get_fleet(bench)).waiting_models] == [4]
        assert [one.job_count for one in (await get_fleet(bench, ALICE)).waiting_models] == [1], "its own only"
        with pytest.raises(InvalidRequest, match="12 digits or more"):
            await discard(bench, bench.model.config_digest[:11])
        assert await discard(bench, "0" * 12) == 0
        assert await discard(bench, bench.model.config_digest[:12]) == 4
        assert await discard(bench, bench.model.config_digest[:12]) == 0, "a repeated call"
        for job_id in (*discarded, of_alice.job_id):
            job = await bench.core.ledger.get(job_id)
            assert (job.state, job.error) == (
                JOB_STATE_CANCELLED,
                f"discarded by the operator, with all of 'toy' (digest {bench.model.config_digest[:12]})",
            )
        assert not (await get_fleet(bench)).waiting_models
        assert not bench.core.dispatcher._queues


async def test_a_claim_of_another_models_job_is_refused_and_costs_nothing(open_bench: OpenBench) -> None:
    """However the entry came into the ring: over RDMA the controller doesn't see who puts what there."""
    async with open_bench() as bench:
        await join(bench, ROLE_ENCODER, bench.model)
        job = await bench.create()
        await leave(bench)
        encoder = await join(bench, ROLE_ENCODER, OTHER)
        await bench.rings[ROLE_ENCODER].publish(Dispatch(job_id=job.job_id, role=ROLE_ENCODER), 0)
        claimed = await bench.rings[ROLE_ENCODER].claim(encoder)
        assert claimed is not None
        with pytest.raises(LeaseLost, match="was accepted for the model 'toy'"):
            await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))
        await bench.rings[ROLE_ENCODER].ack(claimed.lease)
        await bench.rings[ROLE_ENCODER].publish(Dispatch(job_id=job.job_id, role=ROLE_ENCODER), 0)
        assert await take(bench, ROLE_ENCODER, encoder) is None, "what nobody claims, a tick takes out"
        now = await bench.core.ledger.get(job.job_id)
        assert (now.state, list(now.attempts), now.generation) == (JOB_STATE_QUEUED, [], 0)
        await leave(bench)
        assert await bench.claimed(await join(bench, ROLE_ENCODER, bench.model)) == [job.job_id]


async def test_a_repeated_direct_call_gives_no_encoder_another_models_job(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await join(bench, ROLE_ENCODER, bench.model)
        job = await bench.create(request_id="mine", seed=1)
        await leave(bench)
        encoder = await join(bench, ROLE_ENCODER, OTHER)
        request = GenerationRequest(prompt="a circle", seed=1)
        found = await bench.controller.lifecycle.start_direct(encoder, "mine", request, ANYONE)
        assert found.job_id == job.job_id
        assert await bench.claimed(encoder) == []


async def test_a_retry_is_of_the_dead_letters_model(open_bench: OpenBench) -> None:
    """Though the present model would refuse the request, or make something else of it."""
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        dead = await bench.fail(await bench.create(num_inference_steps=3), rank)
        assert dead.dead_letter
        await leave(bench)
        others = await fleet_of(bench, OTHER)
        set_caller(ANYONE)
        again = (await bench.service.RetryJob(pb.RetryJobRequest(job_id=dead.job_id), None)).job
        assert (again.model_digest, again.state) == (bench.model.config_digest, JOB_STATE_QUEUED)
        assert await nothing_for(bench, others)
        await leave(bench)
        assert await bench.claimed(await bench.encoder()) == [again.job_id]


async def test_jobs_of_a_journal_that_names_no_models(open_bench: OpenBench, tmp_path: Any) -> None:
    """They are of the model that the journal served, also where another comes first."""
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        dead = await bench.fail(await bench.create(), rank)
        job = await bench.create()
        await bench.core.ledger.journal.set_meta("model", bench.model.SerializeToString())
    forget_models(tmp_path / "state" / "journal.db")
    async with open_bench() as bench:
        await bench.controller.holdings.recover()
        for job_id in (job.job_id, dead.job_id):
            assert (await bench.core.ledger.get(job_id)).model_digest == bench.model.config_digest
        await silence(bench)
        assert await nothing_for(bench, await fleet_of(bench, OTHER))
        assert [one.job_count for one in (await get_fleet(bench)).waiting_models] == [1]


def forget_models(path: Any) -> None:
    """Make a journal what it was before jobs named their models."""
    with sqlite3.connect(path) as db:
        for job_id, data in db.execute("SELECT job_id, entry FROM jobs").fetchall():
            entry = JournalEntry.FromString(data)
            entry.job.ClearField("model")
            entry.job.ClearField("model_digest")
            db.execute("UPDATE jobs SET entry = ? WHERE job_id = ?", (entry.SerializeToString(), job_id))
        db.execute("DELETE FROM meta WHERE key = 'models_named'")
    db.close()


def described(like: ModelDescription, **fields: Any) -> ModelDescription:
    copy = ModelDescription()
    copy.CopyFrom(like)
    copy.MergeFrom(ModelDescription(**fields))
    return copy


async def test_one_digest_has_one_description(open_bench: OpenBench) -> None:
    """Requests are checked against the first one's; folders' names alone may differ between hosts."""
    async with open_bench() as bench:
        await join(bench, ROLE_ENCODER, bench.model)
        elsewhere = described(bench.model, model="/mnt/toy", revision="main")
        await join(bench, ROLE_DECODER, elsewhere)
        assert bench.core.model.present == bench.model
        with pytest.raises(WrongState, match=r"otherwise than this fleet does, in frame_multiple, defaults_json"):
            await join(bench, ROLE_TRANSFORMER, described(bench.model, frame_multiple=4, defaults_json="{}"))
        assert bench.core.model.present == bench.model
        assert len(bench.core.fleet.members) == 2
        await leave(bench)
        await join(bench, ROLE_TRANSFORMER, described(bench.model, frame_multiple=4))
        assert bench.core.model.present is not None
        assert bench.core.model.present.frame_multiple == 4, "nobody is left that describes it otherwise"


async def test_workers_of_one_role_agree_in_what_decides_bits(
    open_bench: OpenBench, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as bench:
        full = {"dtype": "float32", "hardware": "A"}
        half = {"dtype": "bfloat16", "hardware": "A"}
        await join(bench, ROLE_TRANSFORMER, bench.model, "t1", stage_settings=full)
        await join(bench, ROLE_ENCODER, bench.model, "e1", stage_settings=half)
        with pytest.raises(WrongState, match="dtype is 'bfloat16' at this transformer and 'float32' at rank 1"):
            await join(bench, ROLE_TRANSFORMER, bench.model, "t2", stage_settings=half)
        with pytest.raises(WrongState, match="dtype is '' at this transformer"):
            await join(bench, ROLE_TRANSFORMER, bench.model, "t2")
        await join(bench, ROLE_TRANSFORMER, bench.model, "t1", stage_settings=full)
        with caplog.at_level(logging.WARNING):
            await join(bench, ROLE_TRANSFORMER, bench.model, "t2", stage_settings={**full, "hardware": "B"})
        assert "a transformer on B joins one on A" in caplog.text
        assert len(bench.core.fleet.members) == 3


async def test_two_models_that_come_at_once(slow_bench: Bench) -> None:
    """Both find nobody there; one of them is refused, whichever."""
    bench = slow_bench
    bench.core.model.present = None
    journal = slow_down(bench)
    tasks = [asyncio.create_task(join(bench, ROLE_ENCODER, model)) for model in (bench.model, OTHER)]
    await asyncio.sleep(0)
    journal.go_on.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [int, WrongState]
    (member,) = bench.core.fleet.registered()
    assert member.registration is not None
    assert bench.core.model.present == member.registration.model
