from __future__ import annotations

from typing import Any

import pytest

from triptych.errors import RingMismatch
from triptych.rings import attach, layout, protocol
from triptych.rings.layout import Geometry, Header, swapped
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import CompareSwap, FetchAdd, Operation, Read, Write

GEOMETRY = Geometry(slot_count=2, payload_bytes_max=64)
RING, EPOCH = 2, 5


def formatted() -> bytearray:
    memory = bytearray(GEOMETRY.ring_bytes)
    MemoryDriver(memoryview(memory)).execute(attach.format_ring(GEOMETRY, RING, EPOCH))
    return memory


class OddDriver(MemoryDriver):
    """A network card that gets one thing wrong."""

    def __init__(self, memory: bytearray, fault: str) -> None:
        super().__init__(memoryview(memory))
        self._fault = fault

    def perform(self, operation: Operation) -> Any:
        is_atomic = isinstance(operation, FetchAdd | CompareSwap)
        if self._fault == "operands swapped" and isinstance(operation, FetchAdd):
            operation = operation._replace(addend=swapped(operation.addend))
        if self._fault == "operands swapped" and isinstance(operation, CompareSwap):
            operation = CompareSwap(operation.offset, swapped(operation.expected), swapped(operation.replacement))
        if self._fault == "adds nothing" and isinstance(operation, FetchAdd):
            operation = operation._replace(addend=0)
        if self._fault == "never swaps" and isinstance(operation, CompareSwap):
            operation = operation._replace(replacement=operation.expected)
        if self._fault == "answers nothing" and is_atomic:
            super().perform(operation)
            return 0
        result = super().perform(operation)
        is_swapped = is_atomic and (self._fault == "answers swapped") is not self.answers_swapped
        return swapped(result) if is_swapped else result


def test_a_ring_of_this_program_is_accepted_again_and_again() -> None:
    driver = MemoryDriver(memoryview(formatted()))
    for _ in range(100):
        driver.execute(attach.attach(GEOMETRY, RING, EPOCH))


@pytest.mark.parametrize("field", Header._fields)
def test_each_field_of_the_header_is_checked(field: str) -> None:
    memory = formatted()
    header = Header.unpack(bytes(memory[: layout.RING_HEADER_BYTES]))
    wrong = header._replace(**{field: getattr(header, field) + 1})
    memory[: layout.RING_HEADER_BYTES] = wrong.pack()
    with pytest.raises(RingMismatch, match=field):
        MemoryDriver(memoryview(memory)).execute(attach.attach(GEOMETRY, RING, EPOCH))


def test_memory_in_another_byte_order_is_refused() -> None:
    memory = formatted()
    for offset in range(0, layout.RING_HEADER_BYTES, 8):
        memory[offset : offset + 8] = memory[offset : offset + 8][::-1]
    with pytest.raises(RingMismatch):
        MemoryDriver(memoryview(memory)).execute(attach.attach(GEOMETRY, RING, EPOCH))


def test_empty_memory_is_no_ring() -> None:
    with pytest.raises(RingMismatch, match="magic"):
        MemoryDriver(memoryview(bytearray(GEOMETRY.ring_bytes))).execute(attach.attach(GEOMETRY, RING, EPOCH))


def test_the_byte_order_of_answers_is_found_by_experiment() -> None:
    """A card that answers in big-endian works like any other, once its driver knows."""
    memory = formatted()
    assert MemoryDriver(memoryview(memory)).execute(attach.attach(GEOMETRY, RING, EPOCH)) is False
    odd = OddDriver(memory, "answers swapped")
    odd.answers_swapped = odd.execute(attach.attach(GEOMETRY, RING, EPOCH))
    assert odd.answers_swapped
    tickets = [odd.execute(protocol.publish(GEOMETRY, b"x", 1, 0, lambda count: 0)) for _ in range(2)]
    assert layout.ticket_after(tickets[0], tickets[1]) == 1
    claim = odd.execute(protocol.claim(GEOMETRY, 2, lambda count: 0))
    assert claim is not None
    odd.execute(protocol.ack(GEOMETRY, claim.held))


@pytest.mark.parametrize("fault", ["operands swapped", "adds nothing", "never swaps", "answers nothing"])
def test_a_card_whose_atomics_differ_is_refused_and_spoils_nothing(fault: str) -> None:
    memory = formatted()
    with pytest.raises(RingMismatch):
        OddDriver(memory, fault).execute(attach.attach(GEOMETRY, RING, EPOCH))
    MemoryDriver(memoryview(memory)).execute(attach.attach(GEOMETRY, RING, EPOCH))


def test_many_attach_at_the_same_time() -> None:
    driver = MemoryDriver(memoryview(formatted()))
    running = [(program, next(program)) for program in (attach.attach(GEOMETRY, RING, EPOCH) for _ in range(20))]
    turns = 0
    while running:
        program, chain = running.pop(0)
        turns += 1
        try:
            running.append((program, program.send(tuple(driver.perform(operation) for operation in chain))))
        except StopIteration:
            continue
    assert turns > 3 * 20  # they did get into each other's way


def test_formatting_again_empties_the_ring_and_makes_the_magic_last() -> None:
    memory = formatted()
    memory[layout.STATES_OFFSET] = 2
    driver = MemoryDriver(memoryview(memory))
    (chain,) = list(attach.format_ring(GEOMETRY, RING, EPOCH + 1))
    for operation in chain[:-1]:
        driver.perform(operation)
    assert isinstance(chain[-1], Write)
    assert (chain[-1].offset, len(chain[-1].data)) == (0, 8)
    driver.perform(chain[-1])
    driver.execute(attach.attach(GEOMETRY, RING, EPOCH + 1))
    assert driver.perform(Read(layout.STATES_OFFSET, 8)) == bytes(8)
    start = layout.word_at(driver.perform(Read(layout.TICKET_OFFSET, 8)))
    assert start == layout.first_ticket(EPOCH + 1)
