from __future__ import annotations

import asyncio
import contextlib
import os

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ArenaFull, InvalidRequest, RoomGone, SourceCorrupt, WrongState
from triptych.transport import codec, room
from triptych.transport.allocator import ALIGNMENT_BYTES, FirstFitAllocator
from triptych.transport.arena import Arena

CAPACITY_BYTES = 4096


@given(st.lists(st.one_of(st.integers(1, 1500), st.integers(-20, -1)), max_size=80))
def test_allocations_are_disjoint_and_gaps_merge(operations):
    """Positive numbers allocate so many bytes, negative ones free one of what is held."""
    allocator = FirstFitAllocator(CAPACITY_BYTES)
    held: dict[int, int] = {}
    for operation in operations:
        if operation < 0:
            if held:
                offset = sorted(held)[operation % len(held)]
                del held[offset]
                allocator.free(offset)
        else:
            needed = -(-operation // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            gap = allocator.largest_gap_bytes
            try:
                offset = allocator.allocate(operation)
            except ArenaFull:
                assert gap < needed
                continue
            assert gap >= needed
            assert offset % ALIGNMENT_BYTES == 0
            assert offset + needed <= CAPACITY_BYTES
            assert all(offset + needed <= other or other + size <= offset for other, size in held.items())
            held[offset] = needed
        assert allocator.used_bytes == sum(held.values())
        assert allocator.largest_gap_bytes == largest_gap(held)
    for offset in held:
        allocator.free(offset)
    assert allocator.allocate(CAPACITY_BYTES) == 0


def largest_gap(held: dict[int, int]) -> int:
    ends = [0, *(offset + held[offset] for offset in sorted(held))]
    starts = [*sorted(held), CAPACITY_BYTES]
    return max(start - end for start, end in zip(starts, ends, strict=True))


@pytest.mark.parametrize("size_bytes", [0, -1, CAPACITY_BYTES + 1])
def test_what_never_fits_is_refused(size_bytes):
    with pytest.raises(InvalidRequest, match="1 to 4096"):
        FirstFitAllocator(CAPACITY_BYTES).allocate(size_bytes)


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 2**64 - 1))
@settings(max_examples=50)
def test_layout_round_trip(contents, room_id):
    encoded = codec.encode({"x": [np.frombuffer(content, np.uint8) for content in contents]}, "job")
    pieces, size_bytes = room.lay_out(room_id, encoded.manifest, encoded.buffers)
    data = memoryview(b"".join(pieces))
    assert len(data) == size_bytes
    manifest = room.parse(data, room_id)
    assert manifest == encoded.manifest
    for ref, content in zip(manifest.tensors, contents, strict=True):
        assert ref.offset_bytes % ALIGNMENT_BYTES == 0
        assert bytes(data[ref.offset_bytes : ref.offset_bytes + ref.size_bytes]) == content


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_corrupt(data):
    for head in (b"", room.MAGIC + (1).to_bytes(8, "little")):
        with pytest.raises(SourceCorrupt):
            room.parse(memoryview(head + data[: 63 - len(head)]), 1)
        with contextlib.suppress(SourceCorrupt):
            room.parse(memoryview((head + data).ljust(64, b"\0")), 1)


def put(arena: Arena, room_id: int, size_bytes: int):
    encoded = codec.encode({"x": np.full(size_bytes, room_id % 256, np.uint8)}, "job")
    return arena.put(room_id, encoded.manifest, encoded.buffers)


def test_put_read_release():
    with Arena(2**20) as arena:
        placements = [put(arena, room_id, 1000) for room_id in (1, 2, 3)]
        assert arena.rooms() == [1, 2, 3]
        for placement in placements:
            whole = arena.read(placement.room_id, 0, 10**9)
            assert len(whole) == placement.size_bytes
            assert xxhash.xxh3_128_digest(whole) == placement.xxh3_128
        assert arena.release(2)
        assert not arena.release(2)
        with pytest.raises(RoomGone):
            arena.read(2, 0, 1)
        with pytest.raises(InvalidRequest, match="room_id"):
            put(arena, 1, 10)
        assert put(arena, 4, 1000).offset_bytes == placements[1].offset_bytes
        for room_id in (1, 3, 4):
            arena.release(room_id)
        assert arena.used_bytes == 0
    assert not arena.path.exists()
    with pytest.raises(WrongState):
        put(arena, 5, 1)


def test_full_and_never():
    with Arena(2**16) as arena:
        put(arena, 1, 40_000)
        with pytest.raises(ArenaFull):
            put(arena, 2, 40_000)
        with pytest.raises(InvalidRequest, match="arena_bytes"):
            put(arena, 3, 70_000)
        assert arena.rooms() == [1]


def test_shared_memory_full_is_back_pressure():
    """An arena may be larger than `/dev/shm`; what doesn't fit there is refused, and nothing dies of it."""
    statistics = os.statvfs("/dev/shm")
    total_bytes = statistics.f_blocks * statistics.f_frsize
    with Arena(3 * total_bytes) as arena:
        with pytest.raises(ArenaFull, match="/dev/shm"), arena.borrow(2 * total_bytes):
            pass
        assert arena.used_bytes == 0
        put(arena, 1, 1000)


@pytest.mark.parametrize("size_bytes", [0, 63, 2**41])
def test_arena_sizes(size_bytes):
    with pytest.raises(InvalidRequest, match="arena_bytes"):
        Arena(size_bytes)


def test_reserved_pages_can_be_given_back():
    """Where a card can't pin them after all, they are others' again, and the arena works as without."""
    with Arena(2**20) as arena:
        arena.reserve()
        assert arena.path.stat().st_blocks * 512 == 2**20
        arena.unreserve()
        assert arena.path.stat().st_blocks == 0
        placement = put(arena, 1, 1000)
        assert placement.size_bytes <= arena.path.stat().st_blocks * 512 < 2**20


async def test_waiting_for_space():
    with Arena(2**16) as arena:
        assert await arena.wait_for_space(60_000, timeout_s=1)
        put(arena, 1, 40_000)
        assert not await arena.wait_for_space(40_000, timeout_s=0.05)
        waiting = asyncio.create_task(arena.wait_for_space(40_000, timeout_s=30))
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(arena.release, 1)
        assert await waiting
        with pytest.raises(InvalidRequest):
            await arena.wait_for_space(2**20, timeout_s=1)
