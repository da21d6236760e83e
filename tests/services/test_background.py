"""What the controller does unasked survives its own failures, and only its own clock ends jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.controller.pruning import Keep, Pruner
from services.controller.rings import FATAL
from services.controller.upkeep import Upkeep, attempt, forever
from tests.messages import token_for
from tests.services.conftest import WAIT_S, OpenBench
from triptych import telemetry
from triptych.errors import InvalidRequest, RingUnreachable
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import JOB_STATE_EXPIRED, JOB_STATE_QUEUED


async def test_whatever_a_round_raises_the_next_comes() -> None:
    errors = iter([ValueError("no OSError"), InvalidRequest("url", "", "one"), KeyError("x"), OSError("full")])
    done = asyncio.Event()

    async def work() -> None:
        for error in errors:
            raise error
        done.set()

    metrics = telemetry.ControllerMetrics()
    task = asyncio.create_task(forever(metrics, "tick", work, 0.0, pause_s_max=0.01))
    await asyncio.wait_for(done.wait(), WAIT_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_rings_that_are_gone_end_the_controller() -> None:
    """A new start serves them by gRPC; another round would find them gone again."""

    async def work() -> None:
        raise RingUnreachable("the card fails")

    assert RingUnreachable in FATAL
    with pytest.raises(RingUnreachable):
        await asyncio.wait_for(forever(telemetry.ControllerMetrics(), "tick", work, 0.0), WAIT_S)


async def test_a_store_that_raises_no_oserror_leaves_the_controller_running(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        for _ in range(2):
            job = await bench.create()
            await bench.controller.lifecycle.cancel(job.job_id)
        pruner = Pruner(bench.journal, "nonsense://x", Keep(jobs=1))
        assert not await attempt(bench.core.metrics, "prune", pruner.once)
        assert await bench.journal.get(job.job_id) is not None


class HalfBroken(Upkeep):
    """One part of its tick always fails."""

    async def _evict_stalled(self) -> None:
        raise RuntimeError("a bug")


async def test_a_tick_whose_one_part_fails_does_the_others(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        upkeep = HalfBroken(bench.core, bench.controller.lifecycle, bench.controller.evictions)
        rank = await bench.encoder()
        bench.core.fleet.members[rank].seen_s = -1e9
        await upkeep.tick()
        assert rank not in bench.core.fleet.members
        assert upkeep.depths


@pytest.mark.parametrize(("left_s", "state"), [(3600.0, JOB_STATE_QUEUED), (-0.001, JOB_STATE_EXPIRED)])
async def test_only_the_controllers_clock_ends_a_job(open_bench: OpenBench, left_s: float, state: int) -> None:
    """A worker says that it stopped: because its own clock is a day ahead, or because it was told to."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        deadline = in_s(max(left_s, 2.0))
        await bench.create(deadline_time=deadline)
        await bench.core.dispatcher.publish_waiting()
        claimed = await bench.rings[ROLE_ENCODER].claim(rank)
        token = token_for(claimed, ROLE_ENCODER)
        await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token))
        if left_s < 0:  # what is waited for is the wall clock
            await asyncio.sleep(deadline.ToNanoseconds() / 1e9 - time.time() + 0.01)
        request = fleet_pb.FailPhaseRequest(token=token, reason=fleet_pb.FAILURE_REASON_STOPPED, message="stopped")
        await bench.controller.phases.fail(request)
        assert (await bench.core.ledger.get(claimed.dispatch.job_id)).state == state


def in_s(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return stamp


async def test_a_controller_that_stood_still_judges_nobody_by_it(open_bench: OpenBench) -> None:
    """Its next tick comes late; only silence after that, and before, counts."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        upkeep = Upkeep(bench.core, bench.controller.lifecycle, bench.controller.evictions)
        member = bench.core.fleet.members[rank]
        timeout_s = bench.core.config.worker_timeout_s
        await upkeep.tick_unless_late()
        upkeep.due_s -= 2 * timeout_s  # as if all that time had passed since
        member.seen_s -= 2 * timeout_s
        for _ in range(2):
            await upkeep.tick_unless_late()
            assert rank in bench.core.fleet.members
        member.seen_s -= 2 * timeout_s
        await upkeep.tick_unless_late()
        assert rank not in bench.core.fleet.members


async def test_a_controller_that_stood_still_takes_no_job_for_stalled(open_bench: OpenBench) -> None:
    """The report of its last step, or of its end, could not arrive meanwhile."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        upkeep = Upkeep(bench.core, bench.controller.lifecycle, bench.controller.evictions)
        await bench.create()
        await bench.core.dispatcher.publish_waiting()
        claimed = await bench.rings[ROLE_ENCODER].claim(rank)
        await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, ROLE_ENCODER)))
        progress, job_id = bench.core.ledger.progress, claimed.dispatch.job_id
        long_s = 2 * bench.core.config.stall_timeout_s
        await upkeep.tick_unless_late()
        upkeep.due_s -= long_s  # as if all that time had passed since
        progress[job_id] = replace(progress[job_id], seen_s=progress[job_id].seen_s - long_s)
        for _ in range(2):
            await upkeep.tick_unless_late()
            assert rank in bench.core.fleet.members
