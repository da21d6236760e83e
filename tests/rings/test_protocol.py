"""Programs that are stopped between two operations while the ring changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from tests.rings.tools import first
from triptych import errors
from triptych.rings import attach, layout, protocol, recovery
from triptych.rings.layout import Geometry, Kind, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import CompareSwap, Operation, Program, Read, Write

T = TypeVar("T")
GEOMETRY = Geometry(slot_count=6, payload_bytes_max=64)


def last(count: int) -> int:
    return count - 1


class Bench:
    """A ring of which every operation can be preceded by a disturbance."""

    def __init__(self) -> None:
        self.driver = MemoryDriver(memoryview(bytearray(GEOMETRY.ring_bytes)))
        self.driver.execute(attach.format_ring(GEOMETRY, 1, 1))
        self.performed: list[Operation] = []

    def run(self, program: Program[T], before: Callable[[Operation], None] = lambda operation: None) -> T:
        self.performed = []

        def perform(operation: Operation) -> Any:
            before(operation)
            self.performed.append(operation)
            return self.driver.perform(operation)

        try:
            chain = next(program)
            while True:
                chain = program.send(tuple(perform(operation) for operation in chain))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def publish(self, payload: bytes = b"x", rank: int = 1, target: int = 0) -> int:
        return self.driver.execute(protocol.publish(GEOMETRY, payload, rank, target, first))

    def claim(self, rank: int) -> protocol.Claim:
        claim = self.driver.execute(protocol.claim(GEOMETRY, rank, first))
        assert claim is not None
        return claim

    def ack(self, held: protocol.Held) -> None:
        self.driver.execute(protocol.ack(GEOMETRY, held))

    def reap(self, rank: int) -> recovery.Reaped:
        return self.driver.execute(recovery.reap(GEOMETRY, rank, 3))

    def state(self, slot: int) -> StateWord:
        return self.driver.execute(recovery.states(GEOMETRY))[slot]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def once(condition: Callable[[Operation], bool], action: Callable[[], object]) -> Callable[[Operation], None]:
    """Do something before the first operation that fits."""
    left = [action]

    def before(operation: Operation) -> None:
        if left and condition(operation):
            left.pop()()

    return before


def is_slot_read(operation: Operation) -> bool:
    return isinstance(operation, Read) and operation.offset >= layout.SLOTS_OFFSET


def test_a_claimer_that_was_reaped_before_it_read_the_slot_notices(bench: Bench) -> None:
    bench.publish(b"old")

    def reaped_and_used_again() -> None:
        bench.reap(7)
        bench.ack(bench.claim(8).held)
        bench.publish(b"new")

    with pytest.raises(errors.LeaseLost):
        bench.run(protocol.claim(GEOMETRY, 7, first), once(is_slot_read, reaped_and_used_again))
    assert bench.claim(9).payload == b"new"


def test_a_claimer_that_was_reaped_while_it_read_the_slot_notices(bench: Bench) -> None:
    bench.publish(b"old")
    with pytest.raises(errors.LeaseLost):
        bench.run(
            protocol.claim(GEOMETRY, 7, first),
            once(lambda operation: operation[1] == layout.WORD_BYTES, lambda: bench.reap(7)),
        )
    assert bench.claim(9).payload == b"old"


def test_content_that_is_not_the_tickets_is_never_delivered(bench: Bench) -> None:
    bench.publish(b"right")
    bench.publish(b"wrong")
    content = bench.driver.perform(Read(GEOMETRY.slot_offset(1), GEOMETRY.slot_bytes))
    stray = Write(GEOMETRY.slot_offset(0), content)  # by somebody who should have been fenced
    with pytest.raises(errors.LeaseLost):
        bench.run(protocol.claim(GEOMETRY, 7, first), once(is_slot_read, lambda: bench.driver.perform(stray)))


def test_parked_entries_leave_with_the_next_reap_of_any_rank(bench: Bench) -> None:
    bench.publish(b"hot")
    for _ in range(layout.ATTEMPT_MAX + 1):
        held = bench.claim(7).held
        bench.driver.execute(protocol.nack(GEOMETRY, held))
    assert bench.state(held.slot) == (held.ticket, layout.ATTEMPT_MAX, 0, Kind.LEASED)
    with pytest.raises(errors.LeaseLost):
        bench.ack(held)
    (removal,) = bench.reap(5).removed
    assert (removal.payload, removal.reason) == (b"hot", recovery.PAST_CAP)


def test_a_publisher_that_was_reaped_while_it_wrote_publishes_nothing(bench: Bench) -> None:
    write_next = once(lambda operation: isinstance(operation, Write), lambda: bench.reap(7))
    with pytest.raises(errors.LeaseLost):
        bench.run(protocol.publish(GEOMETRY, b"x", 7, 0, first), write_next)
    assert {state.kind for state in bench.driver.execute(recovery.states(GEOMETRY))} == {Kind.FREE}


def test_a_claimer_that_loses_goes_on_with_what_the_loss_taught_it(bench: Bench) -> None:
    for payload in (b"a", b"b", b"c"):
        bench.publish(payload)
    before = once(lambda operation: isinstance(operation, CompareSwap), lambda: bench.claim(8))
    claim = bench.run(protocol.claim(GEOMETRY, 7, first), before)
    assert claim is not None
    assert claim.payload == b"b"
    assert sum(operation == Read(layout.STATES_OFFSET, GEOMETRY.states_bytes) for operation in bench.performed) == 1


def test_a_claimer_that_loses_sees_an_entry_that_came_back(bench: Bench) -> None:
    bench.publish(b"a")

    def claimed_and_handed_back() -> None:
        bench.driver.execute(protocol.nack(GEOMETRY, bench.claim(8).held))

    before = once(lambda operation: isinstance(operation, CompareSwap), claimed_and_handed_back)
    claim = bench.run(protocol.claim(GEOMETRY, 7, first), before)
    assert claim is not None
    assert claim.held.attempt == 1


def test_only_after_a_loss_is_the_choice_wider_than_the_oldest(bench: Bench) -> None:
    for number in range(6):
        bench.publish(b"%d" % number)
    claim = bench.run(protocol.claim(GEOMETRY, 7, last))
    assert claim is not None
    assert claim.payload == b"0"
    before = once(lambda operation: isinstance(operation, CompareSwap), lambda: bench.claim(8))
    claim = bench.run(protocol.claim(GEOMETRY, 7, last), before)
    assert claim is not None
    assert claim.payload == b"5"  # entries 2 to 5 were the oldest four


def test_losing_for_ever_ends(bench: Bench) -> None:
    bench.publish()

    def taken_and_back(operation: Operation) -> None:
        if isinstance(operation, CompareSwap):
            held = bench.claim(8).held
            bench.ack(held)
            bench.publish()

    assert bench.run(protocol.claim(GEOMETRY, 7, first), taken_and_back) is None
    assert len(bench.performed) <= 1 + 3 * protocol.LOSSES_MAX


def test_a_publisher_that_finds_every_slot_taken_at_the_last_moment_says_full(bench: Bench) -> None:
    def fill() -> None:
        for _ in range(GEOMETRY.slot_count):
            bench.publish()

    before = once(lambda operation: isinstance(operation, CompareSwap), fill)
    with pytest.raises(errors.RingFull):
        bench.run(protocol.publish(GEOMETRY, b"x", 7, 0, first), before)


def test_a_reaper_leaves_alone_what_was_acked_meanwhile(bench: Bench) -> None:
    bench.publish(b"done")
    held = bench.claim(7).held
    before = once(lambda operation: isinstance(operation, CompareSwap), lambda: bench.ack(held))
    assert bench.run(recovery.reap(GEOMETRY, 7, 3), before) == recovery.Reaped((), (), 0)
    assert bench.state(held.slot).kind is Kind.FREE


def test_a_reaper_counts_what_was_never_finished(bench: Bench) -> None:
    program = protocol.publish(GEOMETRY, b"x", 7, 0, first)
    chain = next(program)
    for _ in range(2):  # up to the reservation, and no further
        chain = program.send(tuple(bench.driver.perform(operation) for operation in chain))
    bench.driver.perform(chain[0])
    assert bench.state(0).kind is Kind.WRITING
    assert bench.reap(7) == recovery.Reaped((), (), 1)
    assert bench.state(0).kind is Kind.FREE


def test_a_snapshot_shows_no_content_that_changed_under_it(bench: Bench) -> None:
    bench.publish(b"stays")
    bench.publish(b"goes")

    def change() -> None:
        bench.claim(7)

    views = bench.run(recovery.snapshot(GEOMETRY), once(is_slot_read, change))
    assert [payload for _, payload in views[:3]] == [None, b"goes", None]


@pytest.mark.parametrize("line", protocol.TABLE)
def test_every_line_of_the_table_keeps_ticket_and_moves_attempt_as_it_says(line: str) -> None:
    source, target, step, by = protocol.TABLE[line]
    word = StateWord(9, 4, 2, source)
    after = protocol.advance(line, word, rank=3)
    assert after.kind is target
    assert after == ((0, 0, 0, Kind.FREE) if target is Kind.FREE else (9, 4 + step, 3, target))
    assert by
    for other in Kind:
        if other is not source:
            with pytest.raises(AssertionError):
                protocol.advance(line, word._replace(kind=other))
