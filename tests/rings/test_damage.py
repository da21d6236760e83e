"""Slots that hold no dispatch: workers write them over far memory, and wrong bytes must end no process."""

from __future__ import annotations

import pytest

from tests.rings.tools import first
from triptych.rings import layout, protocol
from triptych.rings.layout import Geometry, Kind, Slot
from triptych.rings.memory import MemoryDriver, MemoryRing
from triptych.rings.ring import dispatch_in
from triptych.v1.dispatch_pb2 import RING_PHASE1, Dispatch

RANK = 3
GARBAGE = b"\xff\xff\xff garbage"


@pytest.fixture
def driver() -> MemoryDriver:
    return MemoryDriver(memoryview(bytearray(Geometry().ring_bytes)))


@pytest.fixture
def ring(driver: MemoryDriver) -> MemoryRing:
    return MemoryRing(RING_PHASE1, 1, attempts_max=2, driver=driver)


async def test_an_entry_that_is_no_dispatch_is_claimed_as_no_jobs(ring: MemoryRing, driver: MemoryDriver) -> None:
    driver.execute(protocol.publish(Geometry(), GARBAGE, 1, 0, first))
    assert [slot.dispatch for slot in ring.slots() if slot.kind is Kind.READY] == [Dispatch()]
    claimed = await ring.claim(RANK)
    assert claimed is not None
    assert claimed.dispatch == Dispatch()
    await ring.ack(claimed.lease)
    assert [slot.kind for slot in ring.slots()] == [Kind.FREE] * layout.SLOT_COUNT


async def test_it_is_reaped_as_any_other(ring: MemoryRing, driver: MemoryDriver) -> None:
    driver.execute(protocol.publish(Geometry(), GARBAGE, 1, 0, first))
    for rank in (RANK, RANK + 1):
        assert await ring.claim(rank) is not None
        _, removed = ring.reap(rank)
    assert [one.dispatch for one in removed] == [Dispatch()]


async def test_a_target_that_can_be_no_rank_is_anyone(ring: MemoryRing, driver: MemoryDriver) -> None:
    driver.execute(protocol.publish(Geometry(), b"", 1, 0, first))
    (slot,) = [one.slot for one in ring.slots() if one.kind is Kind.READY]
    offset = Geometry().slot_offset(slot)
    held = driver.execute(protocol.claim(Geometry(), RANK, first))
    assert held is not None
    written = Slot(held.held.ticket, 2**32 - 1, b"").pack()
    driver._memory[offset : offset + len(written)] = written
    assert driver.execute(protocol.nack(Geometry(), held.held))
    assert await ring.claim(RANK + 1) is not None


def test_what_is_whole_is_read() -> None:
    assert dispatch_in(Dispatch(job_id="job-1").SerializeToString()) == Dispatch(job_id="job-1")
