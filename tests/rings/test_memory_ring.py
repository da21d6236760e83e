from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import pytest

from tests.rings.conformance import ATTEMPTS_MAX, RING, RingConformance, job, some
from tests.rings.tools import FULL_PUBLISH_ROUND_TRIPS, NACK_ROUND_TRIPS, REAP_ROUND_TRIPS, REDELIVERY_ROUND_TRIPS
from triptych import errors
from triptych.rings import layout, protocol, recovery
from triptych.rings.layout import Geometry, Kind
from triptych.rings.memory import MemoryDriver, MemoryRing
from triptych.rings.program import Operation, Program, drive
from triptych.rings.ring import Removed

T = TypeVar("T")


class CountingDriver(MemoryDriver):
    """Counts chains: what a driver for far memory pays a round trip for."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(memoryview(bytearray(geometry.ring_bytes)))
        self.round_trips = 0

    def execute(self, program: Program[T]) -> T:
        def perform(chain: tuple[Operation, ...]) -> tuple[Any, ...]:
            self.round_trips += 1
            return tuple(self.perform(operation) for operation in chain)

        return drive(program, perform)


class MemoryHarness:
    def __init__(self) -> None:
        self.dead_letters: list[Removed] = []
        self.host = MemoryRing(RING, 1, attempts_max=ATTEMPTS_MAX, on_dead_letter=self.dead_letters.append)

    def ring(self) -> MemoryRing:
        return self.host


@pytest.fixture
def harness() -> MemoryHarness:
    return MemoryHarness()


class TestConformance(RingConformance):
    pass


async def test_round_trips() -> None:
    driver = CountingDriver(Geometry())
    ring = MemoryRing(RING, 1, attempts_max=3, driver=driver)

    def spent() -> int:
        count, driver.round_trips = driver.round_trips, 0
        return count

    spent()
    assert (await ring.claim(1), spent()) == (None, protocol.EMPTY_CLAIM_ROUND_TRIPS)
    await ring.publish(job("one"), 0)
    assert spent() == protocol.PUBLISH_ROUND_TRIPS
    lease = (await some(ring, 1)).lease
    assert spent() == protocol.CLAIM_ROUND_TRIPS
    await ring.nack(lease)
    assert spent() == NACK_ROUND_TRIPS
    lease = (await some(ring, 1)).lease
    assert spent() == protocol.CLAIM_ROUND_TRIPS + REDELIVERY_ROUND_TRIPS
    await ring.ack(lease)
    assert spent() == protocol.ACK_ROUND_TRIPS
    ring.reap(1)
    assert spent() == 1
    await ring.publish(job("two"), 0)
    await some(ring, 2)
    spent()
    ring.reap(2)
    assert spent() == REAP_ROUND_TRIPS
    for _ in range(ring.slot_count - 1):
        await ring.publish(job("fill"), 0)
    spent()
    with pytest.raises(errors.RingFull):
        await ring.publish(job("full"), 0)
    assert spent() == FULL_PUBLISH_ROUND_TRIPS


def test_the_promised_bounds() -> None:
    assert protocol.PUBLISH_ROUND_TRIPS <= 4
    assert protocol.CLAIM_ROUND_TRIPS + REDELIVERY_ROUND_TRIPS <= 3
    assert protocol.ACK_ROUND_TRIPS == protocol.EMPTY_CLAIM_ROUND_TRIPS == 1


async def test_a_rank_that_was_cut_off_keeps_what_it_knows_of_and_gives_back_the_rest() -> None:
    ring = MemoryRing(RING, 1, attempts_max=1)
    for name in ("known", "unknown", "another's"):
        await ring.publish(job(name), 0)
    known, unknown = (await some(ring, 7)).lease, (await some(ring, 7)).lease
    other = (await some(ring, 8)).lease
    ring.abandon(7, [known, other])
    assert ring.holds(known)
    assert ring.holds(other)
    again = await some(ring, 9)
    assert (again.dispatch.job_id, again.lease.attempt) == ("unknown", 1)
    with pytest.raises(errors.LeaseLost):
        await ring.ack(unknown)
    await ring.ack(known)


async def test_a_half_written_slot_of_a_rank_that_was_cut_off_is_free_again() -> None:
    driver = MemoryDriver(memoryview(bytearray(Geometry().ring_bytes)))
    ring = MemoryRing(RING, 1, attempts_max=3, driver=driver)
    program = protocol.publish(Geometry(), b"x", 7, 0, lambda count: 0)
    chain = next(program)
    for _ in range(2):
        chain = program.send(tuple(driver.perform(operation) for operation in chain))
    driver.perform(chain[0])
    assert ring.slots()[0].kind is Kind.WRITING
    ring.abandon(8, [])
    assert ring.slots()[0].kind is Kind.WRITING
    ring.abandon(7, [])
    assert ring.slots()[0].kind is Kind.FREE


async def test_what_others_put_there_for_the_dead_is_found_with_the_next_hint() -> None:
    driver = MemoryDriver(memoryview(bytearray(Geometry().ring_bytes)))
    letters: list[Removed] = []
    ready = []
    ring = MemoryRing(
        RING, 1, attempts_max=3, driver=driver, on_dead_letter=letters.append, on_ready=lambda: ready.append(1)
    )
    ring.reap(5)
    ready.clear()
    ring.hint()
    assert not ready  # nothing to be had
    for target in (5, 0):
        driver.execute(protocol.publish(Geometry(), job(f"for {target}").SerializeToString(), 7, target, lambda n: 0))
    waiting = asyncio.create_task(ring.claim(1, 60))
    await asyncio.sleep(0)
    ring.hint()
    assert [(letter.dispatch.job_id, letter.reason) for letter in letters] == [("for 5", recovery.TARGET_DEAD)]
    assert ready
    claimed = await waiting
    assert claimed is not None
    assert claimed.dispatch.job_id == "for 0"


async def test_a_rank_is_cut_off_before_it_is_reaped() -> None:
    seen = []
    ring = MemoryRing(RING, 1, attempts_max=3, on_fence=lambda rank: seen.append((rank, ring.stats().leased_count)))
    await ring.publish(job("held"), 0)
    await some(ring, 7)
    ring.reap(7)
    assert seen == [(7, 1)]


async def test_an_adopted_lease_is_a_lease() -> None:
    ring = MemoryRing(RING, 2, attempts_max=3)
    lease = ring.adopt(job("running"), 7)
    assert await ring.claim(8) is None
    assert ring.holds(lease)
    await ring.ack(lease)
    assert not ring.holds(lease)
    lease = ring.adopt(job("running"), 7)
    redelivered, _ = ring.reap(7)
    assert [claimed.lease for claimed in redelivered] == [lease]
    assert (await some(ring, 8)).lease.attempt == 1
    with pytest.raises(errors.Fenced):
        ring.adopt(job("running"), 7)


async def test_a_lease_of_an_earlier_epoch_is_refused() -> None:
    leases = []
    for epoch in (1, 2):
        ring = MemoryRing(RING, epoch, attempts_max=3, geometry=Geometry(slot_count=1))
        await ring.publish(job("same"), 0)
        leases.append((await some(ring, 1)).lease)
    with pytest.raises(errors.LeaseLost):
        await ring.ack(leases[0])
    await ring.ack(leases[1])


async def test_an_attempt_that_cannot_grow_goes_to_the_controller() -> None:
    letters: list[Removed] = []
    ring = MemoryRing(RING, 1, attempts_max=layout.ATTEMPT_MAX, on_dead_letter=letters.append)
    await ring.publish(job("another"), 0)
    other = (await some(ring, 1)).lease
    await ring.publish(job("hot potato"), 0)
    for attempt in range(layout.ATTEMPT_MAX + 1):
        lease = (await some(ring, 1)).lease
        assert lease.attempt == attempt
        assert not letters
        await ring.nack(lease)
    assert [(letter.dispatch.job_id, letter.reason) for letter in letters] == [("hot potato", recovery.PAST_CAP)]
    assert ring.holds(other)
    assert ring.stats()[:2] == (0, 1)


async def test_withdrawing_takes_what_waits_and_is_unwanted() -> None:
    ring = MemoryRing(RING, 1, attempts_max=3)
    for name in ("held", "unwanted", "wanted"):
        await ring.publish(job(name), 0)
    held = await some(ring, 4)
    removed = ring.withdraw(lambda dispatch: dispatch.job_id != "wanted")
    assert [(one.dispatch.job_id, one.reason) for one in removed] == [("unwanted", recovery.WITHDRAWN)]
    assert ring.holds(held.lease)
    assert (await some(ring, 5)).dispatch.job_id == "wanted"


async def test_an_entry_that_is_claimed_while_it_is_withdrawn_stays_the_claimers() -> None:
    geometry = Geometry()
    driver = MemoryDriver(memoryview(bytearray(geometry.ring_bytes)))
    ring = MemoryRing(RING, 1, attempts_max=3, driver=driver)
    await ring.publish(job("contended"), 0)
    program = recovery.withdraw(geometry, lambda _payload: True)
    chain = next(program)
    for _ in range(2):  # its look at the words, and at the content
        chain = program.send(tuple(driver.perform(operation) for operation in chain))
    claimed = await some(ring, 4)
    with pytest.raises(StopIteration) as ended:
        program.send(tuple(driver.perform(operation) for operation in chain))
    assert ended.value.value == ()
    assert ring.holds(claimed.lease)


async def test_slots_show_what_is_in_them() -> None:
    ring = MemoryRing(RING, 1, attempts_max=3, geometry=Geometry(slot_count=3))
    await ring.publish(job("held"), 0)
    held = await some(ring, 4)
    await ring.publish(job("waits"), 6)
    by_kind = {slot.kind: slot for slot in ring.slots()}
    assert by_kind[Kind.LEASED].rank == 4
    assert by_kind[Kind.LEASED].slot == held.lease.slot
    assert by_kind[Kind.READY].rank == 6
    assert by_kind[Kind.READY].dispatch is not None
    assert by_kind[Kind.READY].dispatch.job_id == "waits"
    assert by_kind[Kind.FREE].dispatch is None
    assert (ring.slot_count, *ring.stats()[:3]) == (3, 1, 1, 0)


async def test_tickets_wrap_in_order() -> None:
    epoch = -3 * pow(layout.first_ticket(1), -1, layout.TICKET_COUNT) % layout.TICKET_COUNT
    assert layout.first_ticket(epoch) == layout.TICKET_COUNT - 3
    ring = MemoryRing(RING, epoch, attempts_max=3)
    tickets = [await ring.publish(job(str(number)), 0) for number in range(8)]
    assert tickets != sorted(tickets)
    assert [(await some(ring, 1)).dispatch.job_id for _ in tickets] == [str(number) for number in range(8)]


async def test_a_claim_cancelled_after_being_woken_leaves_the_entry() -> None:
    ring = MemoryRing(RING, 1, attempts_max=3)
    claim = asyncio.create_task(ring.claim(1, 60))
    await asyncio.sleep(0)
    assert ring.stats().waiting_count == 1
    await ring.publish(job("kept"), 0)  # the claim is woken, but has not run
    claim.cancel()
    await asyncio.wait((claim,))
    assert claim.cancelled()
    assert (await some(ring, 2)).lease.attempt == 0
