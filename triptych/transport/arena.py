"""The one memory in which a worker keeps its rooms: a file in `/dev/shm`, mapped once.

The owner holds an exclusive `flock` on its file for as long as it lives, and the kernel drops that lock however
the process ends. So whether an arena is dead is one question to the kernel, right also across process-id
namespaces and reused ids; the process id in the name is for people. `sweep` deletes the files of the dead.

Pages are taken from the file system (`posix_fallocate`) before they are written, because a write to a mapped
page that `/dev/shm` has no space for kills the process with SIGBUS, while the call returns an error. For the
same reason the bytes are written by `pwrite`, which also lets other Python threads run meanwhile. Where the arenas of
a host are promised more than `/dev/shm` has, each keeps to its share and gives back the pages that it doesn't use.

Threads: every method may be called from any thread. `put` and `release` block for as long as a copy takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import xxhash

from triptych.errors import ArenaFull, DeadlinePassed, InvalidRequest, RoomGone, WrongState
from triptych.memory import address_of
from triptych.transport import room, shared_memory
from triptych.transport.allocator import FirstFitAllocator
from triptych.transport.host import SHARED_MEMORY, host_id
from triptych.transport.shared_memory import NAME_PREFIX
from triptych.v1 import room_pb2

ARENA_BYTES_MAX = 2**40
"""Largest arena, a tebibyte: beyond any host known. What `/dev/shm` can't hold is refused when it is needed."""
CAPABILITY_BYTES = 16
"""Nobody guesses 128 random bits."""
_CREATE_ATTEMPTS_MAX = 8
"""A sweeper may delete a file between its creation and its lock. Eight times in a row is no accident."""


@dataclass(frozen=True)
class Placement:
    """Where a room lies in its arena, the XXH3-128 of its bytes (big-endian, 16 bytes), and what opens it to others."""

    room_id: int
    offset_bytes: int
    size_bytes: int
    xxh3_128: bytes
    capability: bytes


class Arena:
    """Rooms at rest. Make one with `Arena.create`; it is a context manager and deletes its file at the end."""

    def __init__(self, path: Path, file: int, mapping: mmap.mmap) -> None:
        self.path = path
        self.host_id = host_id()
        self.size_bytes = len(mapping)
        self.base_address = address_of(mapping)
        self._file = file
        self._mapping = mapping
        self._lock = threading.Lock()
        self._allocator = FirstFitAllocator(self.size_bytes)
        self._reserved_bytes = 0
        """Pages up to here are ours already. Stays 0 once pages are given back: then each room takes its own."""
        self._gives_back = False
        self._is_pinned = False
        self._share_bytes = self.size_bytes
        self._rooms: dict[int, Placement] = {}
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @classmethod
    def create(cls, size_bytes: int) -> Arena:
        """Create and map the file (mode 0600). Its pages are taken when they are first used.

        Raises InvalidRequest when the size can't be, WrongState when `/dev/shm` can't hold a file.
        """
        if not room.HEADER_BYTES <= size_bytes <= ARENA_BYTES_MAX:
            raise InvalidRequest("arena_bytes", size_bytes, f"{room.HEADER_BYTES} to {ARENA_BYTES_MAX}")
        try:
            path, file = _create_locked()
            os.ftruncate(file, size_bytes)
            return cls(path, file, mmap.mmap(file, size_bytes))
        except OSError as error:
            raise WrongState(
                f"no arena of {size_bytes} bytes can be made in {SHARED_MEMORY}: {error.strerror}"
            ) from error

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file and give its memory back. Unregister it from Mooncake first."""
        with self._lock:
            if self._file < 0:
                return
            self.path.unlink(missing_ok=True)
            # A read that is still under way keeps its view; then the memory goes with the process.
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
        """The largest room that `put` would take now, as far as it is for this arena to say."""
        with self._lock:
            return self._largest_bytes()

    def _largest_bytes(self) -> int:
        used = self._allocator.used_bytes
        if self._is_pinned or not used:  # one room may be larger than the share: somebody has to go on
            return self._allocator.largest_gap_bytes
        return min(self._allocator.largest_gap_bytes, max(0, self._share_bytes - used))

    def reserve(self) -> None:
        """Take every page now, as a card does that pins the arena. Raises WrongState where they can't be had."""
        with self._lock:
            try:
                os.posix_fallocate(self._file, 0, self.size_bytes)
            except OSError as error:
                raise WrongState(f"{self.path.parent} has no {self.size_bytes} bytes (arena_bytes) to pin") from error
            self._reserved_bytes = self.size_bytes
            self._is_pinned, self._gives_back = True, False

    def unreserve(self) -> None:
        """Give every page back, as long as there are no rooms."""
        with self._lock:
            assert not self._rooms
            self._mapping.madvise(mmap.MADV_REMOVE)
            self._reserved_bytes = 0
            self._is_pinned = False

    def rooms(self) -> list[int]:
        """Ids of the rooms held."""
        with self._lock:
            return list(self._rooms)

    def put(
        self, room_id: int, manifest: room_pb2.Manifest, buffers: Sequence[memoryview], beside_bytes: int = 0
    ) -> Placement:
        """Copy a room in and checksum it. The checksum is of the sources, so it also proves the copy.

        `beside_bytes` are those of rooms that stay in the same `/dev/shm` as long as this one: the one that it was made
        from. Fills the offsets of the manifest's tensors in place. Raises ArenaFull when it doesn't fit now,
        InvalidRequest when it never could or when the id is taken.
        """
        layout = room.lay_out(room_id, manifest, buffers)
        self._check_fits(layout.size_bytes, beside_bytes)
        offset = self._allocate(layout.size_bytes)
        try:
            digest = xxhash.xxh3_128()
            position = offset
            for piece in layout.pieces:
                digest.update(piece)
                position += _write(self._file, piece, position)
            capability = secrets.token_bytes(CAPABILITY_BYTES)
            placement = Placement(room_id, offset, layout.size_bytes, digest.digest(), capability)
            with self._lock:
                if room_id in self._rooms:
                    raise InvalidRequest("room_id", room_id, "an id that was never used")
                self._rooms[room_id] = placement
        except BaseException:
            self._free(offset)
            raise
        return placement

    def ref(self, placement: Placement, *, owner_rank: int, owner_address: str, mooncake: str = "") -> room_pb2.RoomRef:
        """What a reader needs. `owner_address` is the `host:port` of the WorkerService, `mooncake` the session."""
        return room_pb2.RoomRef(
            room_id=placement.room_id,
            host_id=self.host_id,
            arena=str(self.path),
            offset_bytes=placement.offset_bytes,
            size_bytes=placement.size_bytes,
            xxh3_128=placement.xxh3_128,
            mooncake_session=mooncake,
            base_address=self.base_address,
            owner_rank=owner_rank,
            owner_address=owner_address,
            capability=placement.capability,
        )

    def read(self, room_id: int, start_bytes: int, size_bytes: int) -> bytes:
        """A copy of part of a room. Raises RoomGone; a range outside the room is cut to it."""
        with self._lock:
            placement = self._placement(room_id)
            start = min(start_bytes, placement.size_bytes)
            end = min(start + size_bytes, placement.size_bytes)
            return self._mapping[placement.offset_bytes + start : placement.offset_bytes + end]

    def placement(self, room_id: int) -> Placement:
        """Where a room lies. Raises RoomGone."""
        with self._lock:
            return self._placement(room_id)

    def release(self, room_id: int) -> bool:
        """Give a room's space back; whether it was still held. Late readers see a wiped header: RoomGone."""
        with self._lock:
            placement = self._rooms.pop(room_id, None)
            if placement is None:
                return False
            start = placement.offset_bytes
            self._mapping[start : start + room.HEADER_BYTES] = bytes(room.HEADER_BYTES)
        self._free(placement.offset_bytes)
        return True

    @contextlib.contextmanager
    def borrow(self, size_bytes: int) -> Iterator[tuple[int, memoryview]]:
        """Space in which a mover may receive: its offset and its bytes, in memory that is registered already.

        Raises ArenaFull, InvalidRequest.
        """
        offset = self._allocate(size_bytes)
        try:
            with memoryview(self._mapping) as whole, whole[offset : offset + size_bytes] as part:
                yield offset, part
        finally:
            self._free(offset)

    async def wait_for_space(self, size_bytes: int, timeout_s: float) -> None:
        """Return when a room of this size would fit; another thread may still be faster.

        Raises DeadlinePassed after `timeout_s`, InvalidRequest when it could never fit.
        """
        self._check_fits(size_bytes, 0)
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while self.largest_gap_bytes < size_bytes:
                    event.clear()
                    if self.largest_gap_bytes < size_bytes:
                        await event.wait()
        except TimeoutError as error:
            raise DeadlinePassed(f"no space of {size_bytes} bytes in the arena within {timeout_s} s") from error
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _placement(self, room_id: int) -> Placement:
        if room_id not in self._rooms:
            raise RoomGone(f"room {room_id:#x} was released, or never was in this arena")
        return self._rooms[room_id]

    def _check_fits(self, size_bytes: int, beside_bytes: int) -> None:
        """Raises InvalidRequest for what can never fit: what `/dev/shm` holds is no more than its size."""
        total = shared_memory.space(self.path.parent).total_bytes
        if total and size_bytes + beside_bytes > total:
            beside = f" beside the {beside_bytes} of the room that it comes from" if beside_bytes else ""
            place = f"what {self.path.parent} has in all{beside}"
            accepted = f"at most {max(0, total - beside_bytes)}, {place}; {shared_memory.REMEDY}, or ask for less"
            raise InvalidRequest("room size in bytes", size_bytes, accepted)
        if size_bytes > self._allocator.capacity_bytes:
            accepted = f"at most {self._allocator.capacity_bytes}, the size of the arena (arena_bytes)"
            raise InvalidRequest("room size in bytes", size_bytes, accepted)

    def _allocate(self, size_bytes: int) -> int:
        with self._lock:
            if self._file < 0:
                raise WrongState("the arena is closed")
            self._look_at_share()
            largest = self._largest_bytes()
            if largest < size_bytes <= self._allocator.largest_gap_bytes:
                raise ArenaFull(
                    f"the arena's share of {self.path.parent} has {largest} of {self._share_bytes} bytes left"
                )
            offset = self._allocator.allocate(size_bytes)
            if offset + size_bytes > self._reserved_bytes:
                try:
                    os.posix_fallocate(self._file, offset, size_bytes)
                except OSError as error:
                    self._allocator.free(offset)
                    if error.errno != errno.ENOSPC:
                        raise
                    left = shared_memory.space(self.path.parent).free_bytes
                    raise ArenaFull(f"{self.path.parent} has {left} bytes left") from error
                if not self._gives_back:
                    self._reserved_bytes = offset + size_bytes
            return offset

    def _free(self, offset_bytes: int) -> None:
        with self._lock:
            size_bytes = self._allocator.size_bytes(offset_bytes)
            self._allocator.free(offset_bytes)
            if self._file >= 0:
                self._look_at_share()
                if self._gives_back:
                    self._give_pages_back(offset_bytes, size_bytes)
            waiters = list(self._waiters)
        for loop, event in waiters:
            # A loop that was closed meanwhile has nobody who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    def _look_at_share(self) -> None:
        """Others come and go."""
        self._share_bytes = shared_memory.share_bytes(self.size_bytes, self.path.parent)
        self._gives_back |= self._share_bytes < self.size_bytes and not self._is_pinned

    def _give_pages_back(self, offset_bytes: int, size_bytes: int) -> None:
        """Of a range that is free again; those at its ends may be a neighbour's, too."""
        start = -(-offset_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset_bytes + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        self._reserved_bytes = 0
        if end > start:
            self._mapping.madvise(mmap.MADV_REMOVE, start, end - start)


def sweep() -> list[Path]:
    """Delete the arenas of dead processes and say which. Called by the launcher and at each worker's start."""
    swept = []
    for path in SHARED_MEMORY.glob(NAME_PREFIX + "*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another sweeper was faster, or it is another user's
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            swept.append(path)
        except OSError:  # locked: its owner lives
            continue
        finally:
            os.close(file)
    return swept


def _create_locked() -> tuple[Path, int]:
    for _attempt in range(_CREATE_ATTEMPTS_MAX):
        path = SHARED_MEMORY / f"{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)
    raise OSError(errno.EAGAIN, "every file was swept before it was locked")


def _write(file: int, piece: bytes | memoryview, offset_bytes: int) -> int:
    rest = memoryview(piece).cast("B")
    while rest:
        written = os.pwrite(file, rest, offset_bytes)
        rest, offset_bytes = rest[written:], offset_bytes + written
    return len(memoryview(piece).cast("B"))
