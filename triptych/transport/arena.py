"""The one memory in which a worker keeps its rooms: a file in `/dev/shm`, mapped once.

`shared_memory` makes the file and takes its pages, `allocator` divides it. Rooms are written by `pwrite`, which
returns an error where a write to the mapping would kill the process, and lets other Python threads run.

Threads: every method may be called from any thread. `put` and `release` block for as long as a copy takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import mmap
import os
import secrets
import threading
from collections.abc import Iterator, Sequence

import xxhash

from triptych.errors import ArenaFull, InvalidRequest, RoomGone, WrongState
from triptych.rdma_devices import address_of
from triptych.transport import room, shared_memory
from triptych.transport.allocator import FirstFitAllocator
from triptych.transport.shared_memory import SHARED_MEMORY, Pages, host_id
from triptych.v1 import room_pb2

ARENA_BYTES_MAX = 2**40
"""Largest arena, a tebibyte: more than any known host has. What `/dev/shm` can't hold is refused when it is needed."""
CAPABILITY_BYTES = 16
"""Nobody guesses 128 random bits."""


class Arena:
    """Rooms at rest. It is a context manager and deletes its file at the end."""

    def __init__(self, size_bytes: int) -> None:
        """Create and map the file (mode 0600). Its pages are taken when they are first used.

        Raises InvalidRequest for an impossible size, WrongState when `/dev/shm` can't hold a file.
        """
        if not room.HEADER_BYTES <= size_bytes <= ARENA_BYTES_MAX:
            raise InvalidRequest("arena_bytes", size_bytes, f"{room.HEADER_BYTES} to {ARENA_BYTES_MAX}")
        try:
            self.path, self._file = shared_memory.create_locked()
            os.ftruncate(self._file, size_bytes)
            self._mapping = mmap.mmap(self._file, size_bytes)
        except OSError as error:
            raise WrongState(
                f"no arena of {size_bytes} bytes can be made in {SHARED_MEMORY}: {error.strerror}"
            ) from error
        self.host_id = host_id()
        self.size_bytes = size_bytes
        self.base_address = address_of(self._mapping)
        self._lock = threading.RLock()
        self._allocator = FirstFitAllocator(size_bytes)
        self._pages = Pages(self._file, self._mapping)
        self._rooms: dict[int, room_pb2.RoomRef] = {}
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file and give its memory back. Unregister it from Mooncake first."""
        with self._lock:
            if self._file < 0:
                return
            self.path.unlink(missing_ok=True)
            # A read under way keeps its view; then the memory is freed when the process ends.
            with contextlib.suppress(BufferError):
                self._mapping.close()
            os.close(self._file)
            self._file = -1
            self._rooms.clear()

    @property
    def used_bytes(self) -> int:
        """Bytes taken by rooms and by reads under way."""
        with self._lock:
            return self._allocator.used_bytes

    @property
    def largest_gap_bytes(self) -> int:
        """The largest room that `put` would take now, unless `/dev/shm` is full."""
        with self._lock:
            return min(self._allocator.largest_gap_bytes, self._pages.left_bytes(self._allocator.used_bytes))

    def reserve(self) -> None:
        """Take every page now, as a card does that pins the arena. Raises WrongState if `/dev/shm` has too few."""
        with self._lock:
            self._pages.take_all()

    def unreserve(self) -> None:
        """Give every page back. Only while there are no rooms."""
        with self._lock:
            assert not self._rooms
            self._pages.give_all_back()

    def rooms(self) -> list[int]:
        """Ids of the rooms held."""
        with self._lock:
            return list(self._rooms)

    def put(
        self, room_id: int, manifest: room_pb2.Manifest, buffers: Sequence[memoryview], beside_bytes: int = 0
    ) -> room_pb2.RoomRef:
        """Copy a room in and return a reference to it, which lacks its owner's rank, address and Mooncake session.

        The checksum is of the sources, so it also proves the copy.

        `beside_bytes` is the size of the room that this one was made from, if it stays in the same `/dev/shm`. Fills
        the offsets of the manifest's tensors in place. Raises ArenaFull when the room doesn't fit now, InvalidRequest
        when it never could or when the id is taken.
        """
        pieces, size_bytes = room.lay_out(room_id, manifest, buffers)
        self._check_fits(size_bytes, beside_bytes)
        offset = self._allocate(size_bytes)
        try:
            digest = xxhash.xxh3_128()
            position = offset
            for piece in pieces:
                digest.update(piece)
                position += _write(self._file, piece, position)
            ref = room_pb2.RoomRef(
                room_id=room_id,
                host_id=self.host_id,
                arena=str(self.path),
                offset_bytes=offset,
                size_bytes=size_bytes,
                xxh3_128=digest.digest(),
                base_address=self.base_address,
                capability=secrets.token_bytes(CAPABILITY_BYTES),
            )
            with self._lock:
                if room_id in self._rooms:
                    raise InvalidRequest("room_id", room_id, "an id that was never used")
                self._rooms[room_id] = copy.deepcopy(ref)
        except BaseException:
            self._free(offset)
            raise
        return ref

    def read(self, room_id: int, start_bytes: int, size_bytes: int) -> bytes:
        """A copy of part of a room. Raises RoomGone; a range outside the room is cut to it."""
        with self._lock:
            held = self.held(room_id)
            start = min(start_bytes, held.size_bytes)
            end = min(start + size_bytes, held.size_bytes)
            return self._mapping[held.offset_bytes + start : held.offset_bytes + end]

    def held(self, room_id: int) -> room_pb2.RoomRef:
        """The reference to a room that is held, as `put` made it; don't change it. Raises RoomGone."""
        with self._lock:
            if room_id not in self._rooms:
                raise no_room(room_id)
            return self._rooms[room_id]

    def release(self, room_id: int) -> bool:
        """Give a room's space back and return whether it was held. Late readers see a wiped header: RoomGone."""
        with self._lock:
            ref = self._rooms.pop(room_id, None)
            if ref is None:
                return False
            start = ref.offset_bytes
            self._mapping[start : start + room.HEADER_BYTES] = bytes(room.HEADER_BYTES)
        self._free(start)
        return True

    @contextlib.contextmanager
    def borrow(self, size_bytes: int) -> Iterator[tuple[int, memoryview]]:
        """Space for a mover to receive in: its offset and its bytes. Raises ArenaFull and InvalidRequest."""
        offset = self._allocate(size_bytes)
        try:
            with memoryview(self._mapping) as whole, whole[offset : offset + size_bytes] as part:
                yield offset, part
        finally:
            self._free(offset)

    async def wait_for_space(self, size_bytes: int, timeout_s: float) -> bool:
        """Return whether a room of this size would fit, as soon as it does or after `timeout_s`.

        Another thread may still take the space first. Raises InvalidRequest when it could never fit.
        """
        self._check_fits(size_bytes, 0)
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiters.add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while self.largest_gap_bytes < size_bytes:
                        await event.wait()
                        event.clear()
            return self.largest_gap_bytes >= size_bytes
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _check_fits(self, size_bytes: int, beside_bytes: int) -> None:
        """Raise InvalidRequest for a room that could never fit."""
        total = shared_memory.space().total_bytes
        if total and size_bytes + beside_bytes > total:
            beside = f" beside the {beside_bytes} of the room that it comes from" if beside_bytes else ""
            place = f"what {SHARED_MEMORY} has in all{beside}"
            accepted = f"at most {max(0, total - beside_bytes)}, {place}; {shared_memory.REMEDY}, or ask for less"
            raise InvalidRequest("room size in bytes", size_bytes, accepted)
        self._allocator.check(size_bytes)

    def _allocate(self, size_bytes: int) -> int:
        with self._lock:
            if self._file < 0:
                raise WrongState("the arena is closed")
            self._pages.look_at_share()
            largest = self.largest_gap_bytes
            if largest < size_bytes <= self._allocator.largest_gap_bytes:
                share_bytes = self._pages.share_bytes
                raise ArenaFull(f"the arena's share of {SHARED_MEMORY} has {largest} of {share_bytes} bytes left")
            offset = self._allocator.allocate(size_bytes)
            try:
                self._pages.take(offset, size_bytes)
            except BaseException:
                self._allocator.free(offset)
                raise
            return offset

    def _free(self, offset_bytes: int) -> None:
        with self._lock:
            size_bytes = self._allocator.free(offset_bytes)
            if self._file >= 0:
                self._pages.give_back(offset_bytes, size_bytes)
            waiters = list(self._waiters)
        for loop, event in waiters:
            # Nobody waits on a loop that was closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)


def _write(file: int, piece: bytes | memoryview, offset_bytes: int) -> int:
    data = memoryview(piece).cast("B")
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset_bytes + written)
    return written


def no_room(room_id: int) -> RoomGone:
    """The error for a room that isn't here, and for a caller who may not know that it is."""
    return RoomGone(f"room {room_id:#x} was released, or never was in this arena")
