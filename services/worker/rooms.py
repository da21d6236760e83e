"""One worker's rooms: it makes them in its own arena, and reads them wherever they are.

Where the arena is full, work waits: that is the back-pressure of the whole fleet.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping

from triptych import ids, telemetry
from triptych.errors import ArenaFull, InvalidRequest, JobCancelled, TransferFailed
from triptych.rpc.backoff import Backoff
from triptych.transport import codec
from triptych.transport import room as layout
from triptych.v1.room_pb2 import Manifest, RoomRef

from .equipment import Equipment, StageThread
from .link import Link
from .running import Running

log = logging.getLogger(__name__)

SPACE_WAIT_S = 1.0
"""Bound of one wait for arena space; between two, the worker looks whether its job is still wanted."""


class Rooms:
    """Everything belongs to the event loop; tensors are touched in `in_thread`."""

    def __init__(self, equipment: Equipment, link: Link, in_thread: StageThread) -> None:
        self._equipment = equipment
        self._arena = equipment.arena
        self._link = link
        self._in_thread = in_thread
        self._made = 0
        self.expected_bytes = 0
        """The largest room so far: what the next job may need."""
        self.waiting_for = ""
        """What work waits for: space for rooms, in a sentence; empty where it doesn't wait."""
        self.fetch_count_by_mover: Counter[str] = Counter()

    def new_id(self) -> int:
        """The id of another room of this rank."""
        self._made += 1
        return ids.room_id(self._link.membership.rank, self._made)

    @property
    def are_used_up(self) -> bool:
        """Whether the rank has no ids left, but one for a check of its own."""
        return self._made >= ids.ROOM_COUNTER_MAX - 1

    async def wait_for_space(self, give_up: Callable[[], bool]) -> None:
        """Wait until the arena has space for the largest room so far. Nothing is claimed meanwhile."""
        size_bytes = self.expected_bytes
        while self._arena.largest_gap_bytes < size_bytes and not give_up():
            self._wait_for(f"space for a room of {size_bytes} bytes, before it claims more: the arena is full")
            await self._arena.wait_for_space(size_bytes, SPACE_WAIT_S)
        self._wait_for("")

    async def fetch(self, running: Running) -> Mapping[str, object]:
        """Read the values that the dispatch's room holds. Raises TransferFailed, RoomGone and SourceCorrupt."""
        ref = running.dispatch.room
        rank = self._link.membership.rank
        with telemetry.span(
            "room.fetch", job_id=running.dispatch.job_id, rank=rank, room_id=f"{ref.room_id:#x}"
        ) as span:
            try:
                fetched = await self._equipment.fetcher.fetch(ref)
            except InvalidRequest as error:  # a bad reference is its owner's fault, not the client's
                raise TransferFailed(str(error)) from error
            span.set_attribute("triptych.mover", fetched.mover)
            span.set_attribute("triptych.protocol", fetched.protocol)
            span.set_attribute("triptych.size_bytes", ref.size_bytes)
            metrics = self._equipment.metrics
            metrics.transferred(fetched.mover, ref.size_bytes, fetched.seconds)
            if fetched.read_count > 1:
                metrics.checksum_failed(fetched.mover)
            self.fetch_count_by_mover[fetched.mover] += 1
            manifest = layout.parse(fetched.buffer, ref.room_id)
            device = self._equipment.config.device
            return await self._in_thread(lambda: codec.decode(manifest, fetched.buffer, device))

    async def store(self, running: Running, outputs: Mapping[str, object]) -> tuple[RoomRef, Manifest]:
        """Put a stage's outputs into a room as soon as there is space. Raises JobCancelled where the job is to stop."""
        job_id = running.dispatch.job_id
        with telemetry.span("room.store", job_id=job_id, rank=self._link.membership.rank) as span:
            encoded = await self._in_thread(lambda: codec.encode(outputs, job_id))
            running.room_id = self.new_id()
            ref = await self._put(running, encoded)
            self.expected_bytes = max(self.expected_bytes, ref.size_bytes)
            span.set_attribute("triptych.room_id", f"{running.room_id:#x}")
            span.set_attribute("triptych.size_bytes", ref.size_bytes)
        ref.owner_rank = self._link.membership.rank
        ref.owner_address = self._equipment.address
        ref.mooncake_session = self._equipment.mooncake_session
        return ref, encoded.manifest

    async def _put(self, running: Running, encoded: codec.Encoded) -> RoomRef:
        """Wait for space: other jobs may have it."""
        room_id = running.room_id
        source = running.dispatch.room
        backoff = Backoff()
        beside_bytes = source.size_bytes if source.host_id == self._arena.host_id else 0
        size_bytes = encoded.manifest.ByteSize() + sum(b.nbytes for b in encoded.buffers)
        try:
            while True:
                try:
                    return await self._in_thread(
                        lambda: self._arena.put(room_id, encoded.manifest, encoded.buffers, beside_bytes)
                    )
                except ArenaFull as error:
                    self._wait_for(f"space for the room of job {running.dispatch.job_id}, {size_bytes} bytes: {error}")
                    await asyncio.sleep(backoff.next_s())  # /dev/shm itself may be full, which no release here ends
                    await self._arena.wait_for_space(size_bytes, SPACE_WAIT_S)
                    if running.should_stop():
                        raise JobCancelled("the job was cancelled while its tensors waited for space") from None
        finally:
            self._wait_for("")

    def _wait_for(self, what: str) -> None:
        """Say what work waits for, in `status`, and in the log when it begins and ends."""
        if what and not self.waiting_for:
            log.warning("waits for %s", what)
        elif self.waiting_for and not what:
            log.info("waits no longer")
        if what != self.waiting_for:
            self.waiting_for = what
            self._link.notify()
