"""The rooms that a worker holds and the phase that it runs are compared with the journal when it registers.

After a restart of the controller the rings are empty. QUEUED jobs are published again immediately, those that read a
room when the room's owner registers; a running job goes on under a new lease when its worker registers.
"""

from __future__ import annotations

import contextlib
import logging

from triptych.errors import Fenced, JournalFull, LeaseLost, RingFull
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.fleet_service_pb2 import RunningPhase
from triptych.v1.job_pb2 import ATTEMPT_KIND_GIVEN_UP
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

from . import jobs
from .core import Core
from .lifecycle import Lifecycle

log = logging.getLogger(__name__)


class Holdings:
    """Settles what workers hold."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._unpublished: set[str] = set()
        """Jobs found waiting for a room's owner to come back, after a restart."""

    async def recover(self) -> None:
        """Take up what an earlier controller left: give every worker that it names the usual time to come back."""
        core = self._core
        await core.ledger.journal.name_models()
        for rank in await core.ledger.journal.ranks():  # jobs may be addressed to it, and it may never come back
            core.fleet.expect(rank)
        async for entry in core.ledger.load():
            for rank in jobs.ranks(entry):
                core.fleet.expect(rank)
            if jobs.is_running(entry):
                continue
            if jobs.role_of(entry) == ROLE_ENCODER:
                core.dispatcher.enqueue(entry)
            else:
                self._unpublished.add(entry.job.job_id)
        if core.ledger.active:
            log.info("recovered %d unfinished jobs in epoch %d", len(core.ledger.active), core.epoch)
        core.model.log_waiting()

    async def settle_running(self, rank: int, running: RunningPhase) -> Lease | None:
        """The lease under which a worker may go on with the job that it says it runs, if it may."""
        ledger = self._core.ledger
        adopted: Lease | None = None
        entry = await ledger.settled(running.dispatch.job_id)
        if entry is not None and entry.job.generation == running.dispatch.generation:
            adopted = await self._adopt(rank, entry, running)
        if adopted is None:
            await self._let_go(rank, running)
        for job_id in ledger.concerning(rank):
            other = ledger.active.get(job_id)
            if other is not None and jobs.is_running(other) and other.lease.rank == rank and other.lease != adopted:
                reason = "the worker came back without the job"
                await self._lifecycle.worker_lost(other, reason, ATTEMPT_KIND_GIVEN_UP)
        return adopted

    async def _let_go(self, rank: int, running: RunningPhase) -> None:
        """A worker drops what it says it runs: do what it now leaves undone after a phase that was completed."""
        core = self._core
        ring = next((ring for ring in core.rings.values() if ring.name == running.lease.ring), None)
        if ring is not None and running.lease.rank == rank:
            with contextlib.suppress(LeaseLost, Fenced):
                await ring.ack(running.lease)
        entry = core.ledger.active.get(running.dispatch.job_id)
        if entry is None or entry.job.generation != running.dispatch.generation or jobs.is_running(entry):
            return
        if jobs.dispatch_of(entry).room.owner_rank == rank:
            core.dispatcher.enqueue(entry)  # where it had published it, the second to start is refused

    async def _adopt(self, rank: int, entry: JournalEntry, running: RunningPhase) -> Lease | None:
        """The lease of a job that the worker is right to run. A worker runs one job at a time, so where the journal
        names its rank the lease there is its own, also one that an earlier answer told of, and that answer was lost."""
        if running.dispatch.role != jobs.role_of(entry) or self._core.model.is_foreign(entry.job):
            return None
        ring = self._core.rings[jobs.role_of(entry)]
        is_named = jobs.is_running(entry) and entry.lease.rank == rank
        if is_named and ring.holds(entry.lease):
            return entry.lease
        if running.lease.rank == rank and ring.holds(running.lease):
            return running.lease
        if not is_named and not (jobs.is_running(entry) and entry.lease == running.lease):
            return None
        return await self._lease_again(rank, entry)

    async def _lease_again(self, rank: int, entry: JournalEntry) -> Lease | None:
        """A new lease of a running job, in ring and journal; None where the ring is full or the job has moved on."""
        ring = self._core.rings[jobs.role_of(entry)]
        try:
            lease = ring.adopt(jobs.dispatch_of(entry), rank)
        except RingFull:
            return None
        try:
            await self._lifecycle.change_lease(entry.job.job_id, entry.lease, lease)
        except (LeaseLost, JournalFull) as error:  # nobody will be told of this lease
            with contextlib.suppress(LeaseLost, Fenced):
                await ring.ack(lease)
            if isinstance(error, JournalFull):
                raise
            return None
        return lease

    async def settle_rooms(self, rank: int, held: set[int]) -> list[int]:
        """Publish what waited for these rooms, send back what needs lost ones. Returns the rooms nobody needs."""
        ledger = self._core.ledger
        needed: set[int] = set()
        for job_id in ledger.concerning(rank):
            entry = ledger.active.get(job_id)
            if entry is None:
                continue
            needed.update(room_id for room_id, owner in jobs.rooms(entry).items() if owner == rank)
            source = jobs.dispatch_of(entry).room
            if source.owner_rank != rank:
                continue
            if source.room_id not in held:
                await self._lifecycle.room_lost(entry, "its owner came back without the tensors")
            elif job_id in self._unpublished:
                self._core.dispatcher.enqueue(entry)
            self._unpublished.discard(job_id)
        return sorted(held - needed)
