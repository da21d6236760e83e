"""Registrations, streams and orders whose answers come late or never: the controller's side, without processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.controller.fleet_service import FleetServicer
from tests.messages import heartbeat, token_for
from tests.services.conftest import WAIT_S, Bench, OpenBench
from tests.services.test_coming_back import register
from triptych.errors import Fenced
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import JOB_STATE_ENCODING, Job


async def begin(bench: Bench, rank: int) -> tuple[Job, Claimed]:
    """A job that an encoder runs."""
    job = await bench.create()
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[ROLE_ENCODER].claim(rank)
    assert claimed is not None
    await bench.controller.phases.start(pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))
    return job, claimed


async def test_an_adoption_whose_answer_was_lost_is_answered_again(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        job, claimed = await begin(bench, rank)
    async with open_bench() as bench:  # the controller was restarted: its rings are empty
        await bench.controller.holdings.recover()
        running = pb.RunningPhase(dispatch=claimed.dispatch, lease=claimed.lease)
        running.lease.ticket += 7  # the lease of another epoch; an empty ring happens to count from the same number
        await move(bench, job, running)
        first = await register(bench, "e", ROLE_ENCODER, number=2, running=running)
        again = await register(bench, "e", ROLE_ENCODER, number=3, running=running)
        assert first.HasField("adopted_lease")
        assert again.adopted_lease == first.adopted_lease
        after = await bench.core.ledger.get(job.job_id)
        assert (after.state, after.generation) == (JOB_STATE_ENCODING, 0)
        assert not after.attempts


async def move(bench: Bench, job: Job, running: pb.RunningPhase) -> None:
    """Have the journal name this lease."""
    entry = await bench.core.ledger.settled(job.job_id)
    assert entry is not None
    await bench.controller.lifecycle.change_lease(job.job_id, entry.lease, running.lease)


async def test_a_registration_of_the_past_changes_nothing(open_bench: OpenBench) -> None:
    """It was held up on its way, and the worker has registered and begun a job since."""
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER, number=2)).rank
        job, _claimed = await begin(bench, rank)
        with pytest.raises(Fenced, match="again since registration 1"):
            await register(bench, "e", ROLE_ENCODER, number=1)
        after = await bench.core.ledger.get(job.job_id)
        assert (after.state, after.generation) == (JOB_STATE_ENCODING, 0)


class Stream:
    """A worker's heartbeat stream, as gRPC would carry it."""

    def __init__(self, bench: Bench, **first: Any) -> None:
        self._reports: asyncio.Queue[pb.HeartbeatRequest] = asyncio.Queue()
        self.say(**first)
        servicer = FleetServicer(bench.controller, "")
        self._orders = servicer.Heartbeat(self, None)  # type: ignore[arg-type]

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> pb.HeartbeatRequest:
        return await self._reports.get()

    def say(self, **fields: Any) -> None:
        self._reports.put_nowait(heartbeat(**fields))

    async def orders(self) -> pb.HeartbeatResponse:
        return await asyncio.wait_for(anext(self._orders), WAIT_S)

    async def close(self) -> None:
        await self._orders.aclose()


async def test_orders_that_an_old_stream_took_with_it_are_sent_again_until_they_are_acknowledged(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        job, claimed = await begin(bench, rank)
        old = Stream(bench, rank=rank, registration_number=1)
        waiting = asyncio.create_task(old.orders())
        await asyncio.sleep(0)
        await bench.controller.lifecycle.cancel(job.job_id)
        bench.core.fleet.release(rank, 4711)
        assert list((await waiting).cancel_job_ids) == [job.job_id]  # it goes out, and never comes
        running = pb.RunningPhase(dispatch=claimed.dispatch, lease=claimed.lease)
        await register(bench, "e", ROLE_ENCODER, number=2, running=running)
        new = Stream(bench, rank=rank, registration_number=2)
        orders = await new.orders()
        assert (list(orders.cancel_job_ids), list(orders.release_room_ids)) == ([job.job_id], [4711])
        new.say(rank=rank, registration_number=2, orders_number=orders.number)
        bench.core.fleet.release(rank, 4712)
        assert list((await new.orders()).release_room_ids) == [4712]
        await old.close()
        await new.close()
        await register(bench, "e", ROLE_ENCODER, number=3)
        third = Stream(bench, rank=rank, registration_number=3)
        assert list((await third.orders()).release_room_ids) == [4712], "what was acknowledged isn't sent again"
        await third.close()


async def test_a_stream_of_an_older_registration_takes_no_orders(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        await register(bench, "e", ROLE_ENCODER, number=2)
        bench.core.fleet.release(rank, 4711)
        late = Stream(bench, rank=rank, registration_number=1)
        with pytest.raises(Fenced):
            await late.orders()
        new = Stream(bench, rank=rank, registration_number=2)
        assert list((await new.orders()).release_room_ids) == [4711]
        await new.close()
