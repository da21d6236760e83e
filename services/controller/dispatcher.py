"""From the journal into the rings: which waiting job is published when.

The request ring is fed late and shallow, so that order is decided here, where it can still be changed. Rings are in
memory: after a restart everything that waits comes through here again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

from services.controller import jobs
from services.controller.fleet import Fleet
from services.controller.ledger import Ledger
from triptych.errors import Fenced, RingFull
from triptych.rings.layout import Kind
from triptych.rings.memory import MemoryRing
from triptych.roles import RING_OF
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_ENCODER, Ring, Role
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

REQUESTS_PER_ENCODER = 2
"""Entries of the request ring for each encoder: one to work on, one to take next without a wait."""


class Dispatcher:
    """Queues of jobs that wait for a place in a ring, one for each role."""

    def __init__(self, rings: Mapping[Ring.ValueType, MemoryRing], ledger: Ledger, fleet: Fleet) -> None:
        self._rings, self._ledger, self._fleet = rings, ledger, fleet
        self._queues: dict[Role.ValueType, dict[str, int]] = {role: {} for role in jobs.WAITING}
        self.work = asyncio.Event()
        """Set when something may be publishable."""

    def enqueue(self, entry: JournalEntry) -> None:
        """Have a waiting job published in its present generation, after those that wait already."""
        self._queues[jobs.role_of(entry)][entry.job.job_id] = entry.job.generation
        self.work.set()

    async def publish_waiting(self) -> None:
        """Move jobs from the queues into the rings, as far as these have (or should have) room.

        What finds its ring full stays where it is in its queue, until `work` is set for another reason: with shared
        memory nobody here can tell which slots are about to become free.
        """
        for role, queue in self._queues.items():
            if not queue:
                continue
            ring = self._rings[RING_OF[role]]
            for job_id, generation in list(itertools.islice(queue.items(), self._wanted_count(role, ring))):
                entry = self._ledger.active.get(job_id)
                if entry is not None and entry.job.generation == generation and not jobs.is_running(entry):
                    try:
                        await self._publish(ring, entry)
                    except RingFull:
                        break
                if queue.get(job_id) == generation:
                    del queue[job_id]

    def _wanted_count(self, role: Role.ValueType, ring: MemoryRing) -> int | None:
        """How many more entries the role's ring should get; None for as many as it takes."""
        if role != ROLE_ENCODER:
            return None
        return max(0, REQUESTS_PER_ENCODER * len(self._fleet.alive(role)) - ring.stats().ready_count)

    async def _publish(self, ring: MemoryRing, entry: JournalEntry) -> None:
        dispatch = jobs.dispatch_of(entry)
        dispatch.publish_time.GetCurrentTime()
        dispatch.sender_rank = 0
        # A target that died: anyone is better than nobody.
        target = dispatch.receiver_rank if dispatch.receiver_rank in self._fleet.members else 0
        await ring.publish(dispatch, target)

    def lease_to(self, rank: int, entry: JournalEntry) -> Lease | None:
        """Lease an accepted job to an encoder without a publication; None where that can't be, and the job queues.

        A repeated call, whose first answer was lost, gives the same lease as long as the job wasn't started.
        """
        ring = self._rings[RING_REQUEST]
        for s in ring.slots():
            if s.kind == Kind.LEASED and s.rank == rank and s.dispatch and s.dispatch.job_id == entry.job.job_id:
                return Lease(ring=RING_REQUEST, slot=s.slot, ticket=s.ticket, attempt=s.attempt, rank=rank)
        try:
            return ring.adopt(jobs.dispatch_of(entry), rank)
        except (RingFull, Fenced):
            self.enqueue(entry)
            return None
