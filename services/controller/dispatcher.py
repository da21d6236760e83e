"""From the journal into the rings: which waiting job is published when.

The request ring is fed late and shallow, so that order is decided here, where it can still be changed. Rings are in
memory: after a restart everything that waits comes through here again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from triptych.errors import RingFull
from triptych.rings.layout import Kind
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Removed
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Role
from triptych.v1.journal_pb2 import JournalEntry

from . import jobs
from .fair_queue import FairQueue
from .fleet import Fleet
from .ledger import Ledger
from .rings import FATAL
from .served_model import ServedModel

log = logging.getLogger(__name__)

REQUESTS_PER_ENCODER = 2
"""Entries of the request ring for each encoder: one to work on, one to take next without a wait."""
PUBLISH_AGAIN_S = 5.0
"""Before a job whose publication failed, for no full ring, is tried again."""
AHEAD_PER_WORKER = 2
"""Entries of a later ring for each of its workers beyond which nothing new is begun. Two keep a worker busy; with more,
a client that comes later waits behind jobs that it can't overtake any more."""


class Dispatcher:
    """Queues of waiting jobs, one for each role and model; those of the fleet's present model are published."""

    def __init__(
        self, rings: Mapping[Role.ValueType, MemoryRing], ledger: Ledger, fleet: Fleet, model: ServedModel
    ) -> None:
        self._rings = rings
        self._ledger = ledger
        self._fleet = fleet
        self._model = model
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

    def start_over(self) -> None:
        """Empty the rings and have every waiting job published, in the journal's order."""
        for ring in self._rings.values():
            ring.withdraw(lambda _dispatch: True)
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

        A job whose ring is full keeps its place in its queue until `work` is set for another reason: with shared memory
        the controller can't tell which slots are about to become free.
        """
        for role, queue in self._queues.get(self._model.digest, {}).items():
            if not queue:
                continue
            wanted = self._wanted_count(role)
            while wanted > 0 and (head := queue.head()) is not None:
                job_id, generation = head
                entry = self._ledger.active.get(job_id)
                if entry is None or entry.job.generation != generation or jobs.is_running(entry):
                    queue.discard(job_id)  # it moved on by another way
                    continue
                try:
                    await self._publish(entry)
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
        ring = self._rings[role]
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
        ring = self._rings[role]
        stats = ring.stats()
        return stats.open_count >= enough or stats.ready_count >= ring.slot_count // 2

    async def _publish(self, entry: JournalEntry) -> None:
        role = jobs.role_of(entry)
        dispatch = jobs.dispatch_of(entry)
        dispatch.sender_rank = 0
        wanted = {ROLE_TRANSFORMER: entry.transformer_rank, ROLE_DECODER: entry.decoder_rank}
        if role == ROLE_TRANSFORMER:
            dispatch.decoder_rank = entry.decoder_rank or self._fleet.elsewhere(entry, ROLE_DECODER)
        # Not the dispatch's own ranks: the controller may have chosen those, and they may have failed since.
        target = self._fleet.target_of(wanted.get(role, 0)) or self._fleet.elsewhere(entry, role)
        await self._rings[role].publish(dispatch, target)

    def withdraw(self) -> list[Removed]:
        """Take out of the rings what no worker may start any more, which would look like waiting work, and what is
        addressed to a worker that claims nothing any more. Returns the latter: others can do these jobs."""
        removed = [one for ring in self._rings.values() for one in ring.withdraw(self._waits_in_vain)]
        return [one for one in removed if not self._is_stale(one.dispatch)]

    def _waits_in_vain(self, dispatch: Dispatch) -> bool:
        receiver = self._fleet.members.get(dispatch.receiver_rank)
        return self._is_stale(dispatch) or (receiver is not None and not receiver.takes_work)

    def _is_stale(self, dispatch: Dispatch) -> bool:
        entry = self._ledger.active.get(dispatch.job_id)
        if entry is None or entry.job.model_digest != self._model.digest:
            return True
        return (entry.job.generation, jobs.role_of(entry)) != (dispatch.generation, dispatch.role)

    def within_reach(self, rank: int) -> set[str]:
        """Jobs of the request ring that an encoder holds or would claim next."""
        found = set()
        for slot in self._rings[ROLE_ENCODER].slots():
            is_held = slot.kind is Kind.LEASED and slot.rank == rank
            is_next = slot.kind is Kind.READY and slot.rank in (0, rank)
            if slot.dispatch is not None and (is_held or is_next):
                found.add(slot.dispatch.job_id)
        return found

    async def publish_to(self, rank: int, entry: JournalEntry) -> None:
        """Address a new job to one encoder; where the ring is full, it is queued for anyone."""
        try:
            await self._rings[ROLE_ENCODER].publish(jobs.dispatch_of(entry), rank)
        except RingFull:
            self.enqueue(entry)
