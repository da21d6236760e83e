from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.rings import layout
from triptych.rings.layout import Geometry, Header, Kind, Slot, StateWord

tickets = st.integers(0, layout.TICKET_COUNT - 1)
words = st.builds(StateWord, tickets, st.integers(0, 2**6 - 1), st.integers(0, 2**28 - 1), st.sampled_from(Kind))
geometries = st.builds(Geometry, st.integers(1, 128), st.integers(1, 64).map(lambda lines: lines * 64))


def test_the_constants_are_what_other_programs_were_built_for() -> None:
    """A change here is a new LAYOUT_VERSION."""
    assert layout.LAYOUT_VERSION == 3
    assert layout.RING_MAGIC.to_bytes(8, "little") == b"TRIPRING"
    assert (layout.TICKET_OFFSET, layout.SCRATCH_OFFSET, layout.REDELIVERED_OFFSET) == (64, 128, 192)
    assert (layout.STATES_OFFSET, layout.SLOTS_OFFSET) == (1024, 4096)
    geometry = Geometry()
    assert geometry == (128, 4096)
    assert (geometry.states_bytes, geometry.slot_bytes, geometry.ring_bytes) == (1024, 4160, 536_576)
    assert (geometry.state_offset(127), geometry.slot_offset(127)) == (2040, 532_416)
    assert list(Kind) == [0, 1, 2, 3]
    assert layout.FREE_WORD == 0


def test_a_state_words_bits_are_where_the_design_says() -> None:
    assert StateWord(0x3FFFFFF, 0, 0, Kind.FREE).pack() == 0xFFFFFFC0_00000000
    assert StateWord(0, 0x3F, 0, Kind.FREE).pack() == 0x0000003F_00000000
    assert StateWord(0, 0, 0xFFFFFFF, Kind.FREE).pack() == 0x00000000_FFFFFFF0
    assert StateWord(0, 0, 0, Kind.LEASED).pack() == 0x00000000_00000003
    assert StateWord(0x1234567, 0x29, 0xABCDEF0, Kind.READY).pack() == (0x1234567 << 38 | 0x29 << 32 | 0xABCDEF02)


def test_the_headers_bytes() -> None:
    header = Header.of(ring=2, epoch=7, geometry=Geometry())
    assert header.pack() == struct.pack("<8sQQQQQQ", b"TRIPRING", 0x0102030405060708, 3, 7, 2, 128, 4096)
    assert layout.RING_HEADER_BYTES == 56 <= layout.TICKET_OFFSET


def test_a_slots_bytes() -> None:
    packed = Slot(ticket=5, target=9, payload=b"abc").pack()
    assert packed == struct.pack("<III", 3, 5, 9) + bytes(52) + b"abc"


@given(words)
def test_a_state_word_survives_packing(word: StateWord) -> None:
    assert 0 <= word.pack() < 2**64
    assert StateWord.unpack(word.pack()) == word


@given(words, st.integers(1, 2**28 - 1))
def test_the_fast_look_for_claimable_words_sees_what_unpacking_sees(word: StateWord, rank: int) -> None:
    for target in (word.rank, rank, 0):
        state = word._replace(rank=target)
        expected = state.ticket if state.kind is Kind.READY and target in (0, rank) else None
        assert layout.claimable_ticket(state.pack(), rank) == expected


@given(st.integers(0, 2**64 - 1))
def test_every_word_is_read_whole_or_refused(word: int) -> None:
    if word & 0xF > 3:
        with pytest.raises(ValueError, match="Kind"):
            StateWord.unpack(word)
    else:
        assert StateWord.unpack(word).pack() == word


@pytest.mark.parametrize(
    "word",
    [
        StateWord(2**26, 0, 0, Kind.READY),
        StateWord(-1, 0, 0, Kind.READY),
        StateWord(0, 64, 0, Kind.READY),
        StateWord(0, 0, 2**28, Kind.READY),
    ],
)
def test_a_field_that_does_not_fit_never_reaches_its_neighbour(word: StateWord) -> None:
    with pytest.raises(AssertionError):
        word.pack()


@given(words, words)
def test_different_states_are_different_words(first: StateWord, second: StateWord) -> None:
    assert (first == second) == (first.pack() == second.pack())


@given(tickets, st.integers(-(2**25), 2**25 - 1))
def test_tickets_compare_as_serial_numbers(ticket: int, distance: int) -> None:
    later = (ticket + distance) % layout.TICKET_COUNT
    assert layout.ticket_after(ticket, later) == distance


@given(tickets, st.lists(st.integers(0, 2**25 - 1), min_size=1, unique=True))
def test_any_live_ticket_serves_as_the_reference_of_an_order(start: int, distances: list[int]) -> None:
    drawn = [(start + distance) % layout.TICKET_COUNT for distance in sorted(distances)]
    for reference in drawn:
        assert sorted(drawn, key=lambda ticket: layout.ticket_after(reference, ticket)) == drawn


def test_epochs_start_far_apart() -> None:
    starts = sorted(layout.first_ticket(epoch) for epoch in range(1, 1001))
    gaps = [
        second - first for first, second in zip(starts, [*starts[1:], starts[0] + layout.TICKET_COUNT], strict=True)
    ]
    assert min(gaps) > 20_000


@given(geometries)
def test_nothing_overlaps_and_atomics_are_aligned(geometry: Geometry) -> None:
    slots = range(geometry.slot_count)
    parts = [(0, layout.RING_HEADER_BYTES), (layout.TICKET_OFFSET, 8), (layout.SCRATCH_OFFSET, 8)]
    parts += [(geometry.state_offset(slot), 8) for slot in slots]
    parts += [(geometry.slot_offset(slot), geometry.slot_bytes) for slot in slots]
    for (offset, size), (following, _) in zip(parts, [*parts[1:], (geometry.ring_bytes, 0)], strict=True):
        assert offset + size <= following
    assert all(offset % 8 == 0 for offset, _ in parts)
    assert geometry.state_offset(geometry.slot_count - 1) + 8 == layout.STATES_OFFSET + geometry.states_bytes


@given(st.lists(words, min_size=1, max_size=8))
def test_state_words_are_read_as_they_were_written(states: list[StateWord]) -> None:
    expected = [word.pack() for word in states]
    assert Geometry(len(states)).words(b"".join(layout.word_bytes(word) for word in expected)) == expected


@given(tickets, st.integers(0, 2**28 - 1), st.binary(max_size=4096), st.binary(max_size=64))
def test_a_slot_survives_packing_before_any_bytes(ticket: int, target: int, payload: bytes, rest: bytes) -> None:
    slot = Slot(ticket, target, payload)
    assert len(slot.pack()) <= Geometry().slot_bytes
    assert Slot.unpack(slot.pack() + rest) == slot
