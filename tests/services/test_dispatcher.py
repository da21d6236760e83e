"""Which waiting job gets into which ring, and what happens when there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.controller.dispatcher import Dispatcher
from services.controller.fleet import Fleet
from services.controller.journal import Journal
from services.controller.ledger import Ledger
from services.controller.served_model import ServedModel
from tests.rings.conformance import job
from tests.rings.tools import cut_short, first
from triptych.rings import protocol
from triptych.rings.layout import Geometry, Kind
from triptych.rings.memory import MemoryDriver, MemoryRing
from triptych.roles import RING_OF
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import JOB_STATE_ENCODED, Job
from triptych.v1.journal_pb2 import JournalEntry

PHASE1 = RING_OF[ROLE_TRANSFORMER]
PUBLISHER = 5


class Bench:
    """A dispatcher over rings in memory that a test can also reach by itself, as workers do over RDMA."""

    def __init__(self, journal: Journal) -> None:
        self.geometry = Geometry()
        self.driver = MemoryDriver(memoryview(bytearray(self.geometry.ring_bytes)))
        self.rings = {role: MemoryRing(name, 1, attempts_max=3) for role, name in RING_OF.items()}
        self.ring = self.rings[ROLE_TRANSFORMER] = MemoryRing(PHASE1, 1, attempts_max=3, driver=self.driver)
        self.ledger = Ledger(journal)
        fleet = Fleet()
        self.dispatcher = Dispatcher(self.rings, self.ledger, fleet, ServedModel(self.ledger, fleet, None))

    def enqueue(self, name: str) -> None:
        """A job that waits for a transformer."""
        dispatch = Dispatch(job_id=name)
        entry = JournalEntry(job=Job(job_id=name, state=JOB_STATE_ENCODED), phase1=dispatch)
        self.ledger.add(entry)
        self.dispatcher.enqueue(entry)

    async def publish_waiting(self) -> None:
        """What the controller does whenever `work` is set."""
        self.dispatcher.work.clear()
        await self.dispatcher.publish_waiting()

    async def names(self) -> list[str]:
        """What claimers get, in order."""
        found = []
        while (claimed := await self.ring.claim(1)) is not None:
            found.append(claimed.dispatch.job_id)
            await self.ring.ack(claimed.lease)
        return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Journal(tmp_path) as journal:
        yield Bench(journal)


async def test_waiting_jobs_keep_their_order(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.enqueue(name)
    await bench.publish_waiting()
    assert await bench.names() == ["a", "b", "c"]


async def test_a_full_ring_leaves_the_rest_in_order_and_keeps_nobody_busy(bench: Bench) -> None:
    """One slot is reserved by a publisher that will never fill it, so it is neither free nor to be had."""
    bench.driver.execute(cut_short(protocol.publish(bench.geometry, b"never written", PUBLISHER, 0, first), 3))
    assert [slot.kind for slot in bench.ring.slots()].count(Kind.WRITING) == 1
    for number in range(bench.geometry.slot_count - 2):
        await bench.ring.publish(job(f"other {number}"), 0)
    assert [slot.kind for slot in bench.ring.slots()].count(Kind.FREE) == 1
    for name in ("a", "b", "c"):
        bench.enqueue(name)
    await bench.publish_waiting()
    assert not bench.dispatcher.work.is_set(), "or the controller would do nothing else any more"
    assert (await bench.names())[-1] == "a"
    await bench.publish_waiting()
    assert await bench.names() == ["b", "c"]


async def test_a_job_that_moved_on_is_not_published(bench: Bench) -> None:
    bench.enqueue("gone")
    del bench.ledger.active["gone"]
    bench.enqueue("here")
    await asyncio.wait_for(bench.publish_waiting(), 10)
    assert await bench.names() == ["here"]
