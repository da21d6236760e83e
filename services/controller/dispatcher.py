"""From the journal into the rings: which waiting job is published when.

The request ring is fed late and shallow, so that order is decided here, where it can still be changed. Rings are in
memory: after a restart everything that waits comes through here again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from services.controller import jobs
from services.controller.background import FATAL
from services.controller.fair_queue import FairQueue
from services.controller.fleet import Fleet
from services.controller.ledger import Ledger
from services.controller.routing import elsewhere
from triptych.errors import Fenced, RingFull
from triptych.rings.layout import Kind
from triptych.rings.memory import MemoryRing
from triptych.roles import RING_OF
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Ring, Role
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

log = logging.getLogger(__name__)

REQUESTS_PER_ENCODER = 2
"""Entries of the request ring for each encoder: one to work on, one to take next without a wait."""
PUBLISH_AGAIN_S = 5.0
"""Before a job whose publication failed, for no full ring, is tried again."""
AHEAD_PER_WORKER = 2
"""Entries of a later ring for each of its workers beyond which nothing new is begun. Two keep a worker busy; what is
more only has a client that comes later wait behind jobs that can't be overtaken any more."""


class Dispatcher:
    """Queues of jobs that wait for a place in a ring, one for each role and model.

    Only those of the model that `get_digest` names are published; the others' wait for their model.
    """

    def __init__(
        self,
        rings: Mapping[Ring.ValueType, MemoryRing],
        ledger: Ledger,
        fleet: Fleet,
        get_digest: Callable[[], str] = lambda: "",
    ) -> None:
        self._rings, self._ledger, self._fleet, self._get_digest = rings, ledger, fleet, get_digest
        self._queues: dict[str, dict[Role.ValueType, FairQueue]] = {}
        """By digest of the model, by role."""
        self.work = asyncio.Event()
        """Set when something may be publishable."""

    def enqueue(self, entry: JournalEntry) -> None:
        """Have a waiting job published in its present generation, when it is its turn."""
        job = entry.job
        if (queues := self._queues.get(job.model_digest)) is None:
            queues = self._queues[job.model_digest] = {role: FairQueue() for role in jobs.WAITING}
        queues[jobs.role_of(entry)].put(job.job_id, job.generation, job.client, job.priority)
        self.work.set()

    def waits(self, entry: JournalEntry) -> bool:
        """Whether a waiting job is queued in its present generation."""
        queues = self._queues.get(entry.job.model_digest)
        return queues is not None and queues[jobs.role_of(entry)].waits(entry.job.job_id, entry.job.generation)

    def enqueue_all(self) -> None:
        """Have every waiting job published in the journal's order; for when the rings were emptied."""
        self._queues.clear()
        for entry in self._ledger.active.values():
            if not jobs.is_running(entry):
                self.enqueue(entry)

    def discard(self, job_id: str) -> None:
        """A job is over: it no longer waits."""
        for digest, queues in list(self._queues.items()):
            for queue in queues.values():
                queue.discard(job_id)
            if not any(queues.values()):
                del self._queues[digest]

    async def publish_waiting(self) -> None:
        """Move jobs from the queues into the rings, as far as these have (or should have) room.

        What finds its ring full stays where it is in its queue, until `work` is set for another reason: with shared
        memory nobody here can tell which slots are about to become free.
        """
        for role, queue in self._queues.get(self._get_digest(), {}).items():
            if not queue:
                continue
            ring, wanted = self._rings[RING_OF[role]], self._wanted_count(role)
            while wanted > 0 and (head := queue.head()) is not None:
                job_id, generation = head
                entry = self._ledger.active.get(job_id)
                if entry is None or entry.job.generation != generation or jobs.is_running(entry):
                    queue.discard(job_id)  # it moved on by another way
                    continue
                try:
                    await self._publish(ring, entry)
                except RingFull:
                    break
                except FATAL:
                    raise
                except Exception:  # one job's: it goes behind the others, and they don't wait for it
                    log.exception("a job can't be published now", extra={"job_id": job_id})
                    queue.discard(job_id)
                    asyncio.get_running_loop().call_later(PUBLISH_AGAIN_S, self._enqueue_again, job_id, generation)
                    continue
                wanted -= 1
                if queue.head() == head:
                    queue.pop()
                else:
                    queue.discard(job_id)

    def _enqueue_again(self, job_id: str, generation: int) -> None:
        entry = self._ledger.active.get(job_id)
        if entry is not None and entry.job.generation == generation and not jobs.is_running(entry):
            self.enqueue(entry)

    def _wanted_count(self, role: Role.ValueType) -> int:
        """How many more entries the role's ring should get."""
        ring = self._rings[RING_OF[role]]
        if role != ROLE_ENCODER:
            return ring.slot_count
        if any(self._is_deep(later) for later in (ROLE_TRANSFORMER, ROLE_DECODER)):
            return 0
        able = sum(member.takes_work for member in self._fleet.alive(role))
        return REQUESTS_PER_ENCODER * able - ring.stats().open_count

    def _is_deep(self, role: Role.ValueType) -> bool:
        """Whether the role's workers have enough to do. A role without workers counts as one that will come.

        Entries for one rank only don't count, or they would keep the others idle, until they are half the ring.
        """
        enough = AHEAD_PER_WORKER * max(1, len(self._fleet.alive(role)))
        stats = self._rings[RING_OF[role]].stats()
        return stats.open_count >= enough or stats.ready_count >= stats.slot_count // 2

    async def _publish(self, ring: MemoryRing, entry: JournalEntry) -> None:
        dispatch, role = jobs.dispatch_of(entry), jobs.role_of(entry)
        dispatch.publish_time.GetCurrentTime()
        dispatch.sender_rank = 0
        wanted = {ROLE_TRANSFORMER: entry.transformer_rank, ROLE_DECODER: entry.decoder_rank}
        if role == ROLE_TRANSFORMER:
            dispatch.decoder_rank = entry.decoder_rank or elsewhere(entry, ROLE_DECODER, self._fleet)
        # Not what the dispatch names: that may be a choice of ours, which has failed since.
        target = self._fleet.target_of(wanted.get(role, 0)) or elsewhere(entry, role, self._fleet)
        await ring.publish(dispatch, target)

    def withdraw_stale(self) -> None:
        """Take out of the rings what nobody may start any more: it would look like work that waits."""
        for ring in self._rings.values():
            ring.withdraw(self._is_stale)

    def _is_stale(self, dispatch: Dispatch) -> bool:
        entry = self._ledger.active.get(dispatch.job_id)
        if entry is None or entry.job.model_digest != self._get_digest():
            return True
        return (entry.job.generation, jobs.role_of(entry)) != (dispatch.generation, dispatch.role)

    def withdraw(self, rank: int) -> None:
        """A worker claims nothing any more: what waits for it alone goes to others."""
        for ring in self._rings.values():
            for removed in ring.withdraw(lambda dispatch: dispatch.receiver_rank == rank):
                entry = self._ledger.active.get(removed.dispatch.job_id)
                if entry is not None and entry.job.generation == removed.dispatch.generation:
                    self.enqueue(entry)

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
