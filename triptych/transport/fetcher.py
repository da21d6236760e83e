"""Fetches rooms: chooses the mover, verifies the bytes, falls back.

for each mover that reaches the room, in order, slow failures last (or the forced one only):
    read; checksum right -> done
    wrong -> the header is another's or wiped? RoomGone : read once more; wrong again -> SourceCorrupt
    TransferFailed or too slow -> the next mover; none left -> TransferFailed with every mover's reason
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from triptych import limits, rpc
from triptych.errors import InvalidRequest, RoomGone, SourceCorrupt, TransferFailed
from triptych.security import auth
from triptych.transport import room
from triptych.transport.allocator import ALIGNMENT_BYTES
from triptych.transport.arena import Arena
from triptych.transport.mooncake_engine import MooncakeEngine
from triptych.transport.movers import LocalMover, MooncakeMover, Mover, RpcMover
from triptych.v1 import room_pb2

log = logging.getLogger(__name__)

FETCH_TIMEOUT_BASE_S = 10.0
"""Least time for a read: for the connection, and for machines under full load."""
READS_MAX = 2
"""Reads of one room by one mover. A bit that flipped on the way is right in the second read, one at rest isn't."""
FETCH_THREADS_MAX = 4
"""Most blocking reads at a time. A worker needs one; the others are for reads that hang until their timeout."""

SLOW_FAILURE_S = 1.0
"""A mover that needs so long to fail to reach an owner holds jobs up. Behind a silent firewall Mooncake takes 5 s."""
LAST_CHOICE_S = 300.0
"""For so long after a slow failure the mover is the last choice for that owner."""


@dataclass(frozen=True)
class Fetched:
    """A verified room, in memory of its own: writable, 64-byte aligned, independent of the owner."""

    buffer: memoryview
    mover: str
    protocol: str
    """The protocol that carried the bytes; see `movers.Mover`."""
    seconds: float
    read_count: int


class Fetcher:
    """Reads rooms through the first of its movers that succeeds. Make one with `open_fetcher`, and close it."""

    def __init__(
        self,
        movers: Sequence[Mover],
        executor: ThreadPoolExecutor,
        forced: str = "",
        bytes_per_s_min: float = limits.ROOM_BYTES_PER_S_MIN,
    ) -> None:
        names = [mover.name for mover in movers]
        if forced and forced not in names:
            raise InvalidRequest("mover", forced, "one that this worker has: " + ", ".join(names))
        self._movers = [mover for mover in movers if forced in ("", mover.name)]
        self._executor = executor
        self._bytes_per_s_min = bytes_per_s_min
        self._slow: dict[tuple[str, int], float] = {}
        """When a mover failed slowly to reach an owner's rank."""

    async def fetch(self, ref: room_pb2.RoomRef) -> Fetched:
        """Read and verify a room.

        Raises RoomGone (released), SourceCorrupt (wrong bytes twice), TransferFailed (no mover reaches it in time),
        InvalidRequest (an impossible reference).
        """
        room.check_ref(ref)
        failures = []
        for mover in self._in_order(ref.owner_rank):
            if not mover.accepts(ref):
                failures.append(f"{mover.name} doesn't reach it")
                continue
            started = time.monotonic()
            try:
                buffer, read_count = await self._read_verified(mover, ref)
            except TransferFailed as error:
                failures.append(f"{mover.name}: {error}")
                self._failed(mover, ref.owner_rank, started, error)
                continue
            return Fetched(buffer, mover.name, mover.protocol, time.monotonic() - started, read_count)
        raise TransferFailed(f"room {ref.room_id:#x} can't be read ({'; '.join(failures)})")

    def _in_order(self, owner_rank: int) -> list[Mover]:
        late_s = time.monotonic() - LAST_CHOICE_S
        return sorted(self._movers, key=lambda mover: self._slow.get((mover.name, owner_rank), -math.inf) > late_s)

    def _failed(self, mover: Mover, owner_rank: int, started_s: float, error: TransferFailed) -> None:
        """Remember a mover that took long to fail."""
        now_s = time.monotonic()
        if len(self._movers) > 1 and now_s - started_s >= SLOW_FAILURE_S:
            self._slow = {key: at_s for key, at_s in self._slow.items() if now_s - at_s < LAST_CHOICE_S}
            self._slow[mover.name, owner_rank] = now_s
            log.warning(
                "%s is the last choice for rooms of rank %d for %g s: %s", mover.name, owner_rank, LAST_CHOICE_S, error
            )

    @property
    def reaches_itself(self) -> bool:
        """Whether a mover other than Mooncake can read a room of this process's own arena."""
        return any(mover.name != "mooncake" for mover in self._movers)

    def timeout_s(self, size_bytes: int) -> float:
        """The bound of one read of a room."""
        return FETCH_TIMEOUT_BASE_S + limits.allowance_s(size_bytes, self._bytes_per_s_min)

    def close(self) -> None:
        """Accept no more reads. Reads that still block end by their own timeout."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _read_verified(self, mover: Mover, ref: room_pb2.RoomRef) -> tuple[memoryview, int]:
        timeout_s = self.timeout_s(ref.size_bytes)
        for read_count in range(1, READS_MAX + 1):
            # Fresh memory for each read, because a read that timed out may still write to its own.
            buffer = _aligned_buffer(ref.size_bytes)
            try:
                async with asyncio.timeout(timeout_s):
                    await mover.fetch(ref, buffer)
                    loop = asyncio.get_running_loop()
                    digest = await loop.run_in_executor(self._executor, xxhash.xxh3_128_digest, buffer)
            except TimeoutError as error:
                raise TransferFailed(f"not read within {timeout_s:.0f} s") from error
            if digest == ref.xxh3_128:
                return buffer, read_count
            if room.released(buffer, ref.room_id):
                raise RoomGone(f"room {ref.room_id:#x} was released")
        raise SourceCorrupt(f"room {ref.room_id:#x}: wrong checksum, {READS_MAX} times, by {mover.name}")


def open_fetcher(
    arena: Arena,
    engine: MooncakeEngine | None,
    security: auth.Security = auth.OPEN,
    forced: str = "",
    bytes_per_s_min: float = limits.ROOM_BYTES_PER_S_MIN,
) -> Fetcher:
    """A worker's fetcher: `local`, then `mooncake` if there is an engine (with `arena` registered), then `rpc`.

    `security` is the worker's own; owners of rooms see its certificate, but never its token. `forced` is a mover's
    name, or empty to choose for each room. Raises InvalidRequest if this worker lacks that mover.
    """
    executor = ThreadPoolExecutor(FETCH_THREADS_MAX, thread_name_prefix="fetch")
    movers: list[Mover] = [LocalMover(executor)]
    if engine is not None:
        movers.append(MooncakeMover(engine, arena, executor))
    movers.append(RpcMover(functools.partial(rpc.open_channel, security=security.among_peers)))
    return Fetcher(movers, executor, forced, bytes_per_s_min)


def _aligned_buffer(size_bytes: int) -> memoryview:
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)  # a MemoryError is this worker's, not the room's
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes].data
