"""What fell between journal, rings and workers is taken up again, and what is on its way is left alone."""

from __future__ import annotations

import asyncio
from typing import Any

from services.controller.reconciler import EVICTION_TIMEOUTS, IDLE_TIMEOUTS, REPORTS_MIN, Reconciler
from tests.messages import heartbeat
from tests.services.conftest import Bench, OpenBench
from tests.services.test_coming_back import encode, register
from tests.services.test_tie import begin
from triptych.rings.ring import Claimed
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import JOB_STATE_ENCODED
from triptych.v1.worker_pb2 import WORKER_STATE_BUSY, WORKER_STATE_IDLE, StepProgress


class Watch:
    """A reconciler whose time passes as it is told."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.now_s = asyncio.get_running_loop().time()
        self.evicted: list[int] = []
        self._reconciler = Reconciler(bench.core, self._evict)

    async def _evict(self, rank: int, reason: str, kind: int) -> None:
        self.evicted.append(rank)

    async def after(self, timeouts: float, **report: Any) -> None:
        """Look at all rings now and so many `worker_timeout_s` later, with a worker's reports between."""
        passed_s = timeouts * self.bench.config.worker_timeout_s
        for share in (0.0, 1.0):
            self.now_s += share * passed_s
            for _ in range(REPORTS_MIN if report else 0):
                self.bench.controller.membership.report(heartbeat(**report))
                self.bench.core.fleet.get(report["rank"]).seen_s = self.now_s
            for _ in range(3):
                await self._reconciler.look(self.now_s)


async def test_a_completion_that_was_never_published_is_queued_again(open_bench: OpenBench) -> None:
    """The publication failed with a status that nobody foresaw, and the worker went on to something else."""
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        transformer = (await register(bench, "t", ROLE_TRANSFORMER)).rank
        job = await bench.create()
        claimed, _after = await encode(bench, job, encoder)
        await bench.rings[ROLE_ENCODER].ack(claimed.lease)
        await Watch(bench).after(1.01, rank=encoder, registration_number=1, state=WORKER_STATE_IDLE)
        await bench.core.dispatcher.publish_waiting()
        found = await bench.rings[ROLE_TRANSFORMER].claim(transformer)
        assert found is not None
        assert found.dispatch.job_id == job.job_id


async def test_a_completion_whose_worker_still_publishes_is_left_to_it(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        encoder = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        job = await bench.create()
        claimed, _after = await encode(bench, job, encoder)
        progress = StepProgress(job_id=job.job_id)
        report: dict[str, Any] = {"state": WORKER_STATE_BUSY, "progress": progress, "held_leases": [claimed.lease]}
        await Watch(bench).after(1.01, rank=encoder, registration_number=1, **report)
        entry = await bench.core.ledger.settled(job.job_id)
        assert entry is not None
        assert entry.job.state == JOB_STATE_ENCODED
        assert not bench.core.dispatcher.waits(entry)


async def test_a_lease_whose_answer_never_came_goes_to_another(open_bench: OpenBench) -> None:
    """A claim's answer: the job waits, leased to an encoder that has never heard of it."""
    async with open_bench() as bench:
        first = (await register(bench, "e1", ROLE_ENCODER, number=1)).rank
        second = (await register(bench, "e2", ROLE_ENCODER)).rank
        job = await bench.create()
        await bench.core.dispatcher.publish_waiting()
        assert await bench.rings[ROLE_ENCODER].claim(first) is not None
        assert await bench.rings[ROLE_ENCODER].claim(second) is None
        await Watch(bench).after(1.01, rank=first, registration_number=1, state=WORKER_STATE_IDLE)
        found = await bench.rings[ROLE_ENCODER].claim(second)
        assert found is not None
        assert found.dispatch.job_id == job.job_id


async def test_a_lease_that_its_worker_names_stays(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e1", ROLE_ENCODER, number=1)).rank
        await bench.create()
        await bench.core.dispatcher.publish_waiting()
        claimed = await bench.rings[ROLE_ENCODER].claim(rank)
        assert claimed is not None
        await Watch(bench).after(9.0, rank=rank, registration_number=1, held_leases=[claimed.lease])
        assert bench.rings[ROLE_ENCODER].holds(claimed.lease)


async def test_a_worker_that_does_not_know_what_it_runs_is_asked_to_register(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
        _job, claimed = await begin(bench, rank)
        stream = bench.core.fleet.get(rank).open_stream()
        await Watch(bench).after(1.01, rank=rank, registration_number=1, state=WORKER_STATE_IDLE)
        assert bench.core.fleet.get(rank).stream == stream + 1
        assert bench.rings[ROLE_ENCODER].holds(claimed.lease), "the registration settles it"


async def ready(bench: Bench) -> tuple[int, Watch]:
    """An encoder, and an entry that it could claim."""
    rank = (await register(bench, "e", ROLE_ENCODER, number=1)).rank
    await bench.create()
    await bench.core.dispatcher.publish_waiting()
    return rank, Watch(bench)


async def test_a_worker_that_is_idle_beside_work_is_asked_to_register_and_then_declared_dead(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as bench:
        rank, watch = await ready(bench)
        stream = bench.core.fleet.get(rank).open_stream()
        idle: dict[str, Any] = {"rank": rank, "registration_number": 1, "state": WORKER_STATE_IDLE}
        await watch.after(IDLE_TIMEOUTS - 0.01, **idle)
        assert bench.core.fleet.get(rank).stream == stream
        await watch.after(0.02, **idle)
        assert bench.core.fleet.get(rank).stream == stream + 1
        await watch.after(EVICTION_TIMEOUTS - IDLE_TIMEOUTS - 0.1, **idle)
        assert (bench.core.fleet.get(rank).stream, watch.evicted) == (stream + 1, [])
        await watch.after(0.2, **idle)
        assert watch.evicted == [rank]


async def test_a_worker_that_is_busy_beside_work_is_left_alone(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank, watch = await ready(bench)
        stream = bench.core.fleet.get(rank).open_stream()
        await watch.after(EVICTION_TIMEOUTS + 1, rank=rank, registration_number=1, state=WORKER_STATE_BUSY)
        assert (bench.core.fleet.get(rank).stream, watch.evicted) == (stream, [])


async def test_a_worker_that_takes_one_after_the_other_is_not_idle(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank, watch = await ready(bench)
        stream = bench.core.fleet.get(rank).open_stream()
        for _ in range(4):
            await watch.after(1.5, rank=rank, registration_number=1, state=WORKER_STATE_IDLE)
            claimed = await bench.rings[ROLE_ENCODER].claim(rank)
            assert isinstance(claimed, Claimed)
            await bench.rings[ROLE_ENCODER].ack(claimed.lease)
            await bench.create()
            await bench.core.dispatcher.publish_waiting()
        assert (bench.core.fleet.get(rank).stream, watch.evicted) == (stream, [])
