"""Workers are evicted: their ranks are fenced, and their jobs go to others.

Order matters: **fence, then reap**. First the rank is forgotten, so that its every call is refused; only then are its
leases given to others. A slow worker that wakes up finds nothing that it can write.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from triptych.errors import JournalFull
from triptych.rings.layout import Kind
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED, ATTEMPT_KIND_WORKER_SICK, AttemptKind

from . import jobs
from .core import Core
from .lifecycle import Lifecycle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Eviction:
    """A fenced rank, as long as the journal lacks what follows from its end."""

    rank: int
    reason: str
    kind: AttemptKind.ValueType
    """How its end counts in the job that it ran."""
    handed_back: frozenset[jobs.DispatchKey]
    """Dispatches that it had given up itself."""
    redelivered: frozenset[str]
    """Jobs whose dispatch the ring delivers again."""


class Evictions:
    """Evicts workers."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._unsettled: list[_Eviction] = []

    async def evict(self, rank: int, reason: str, kind: AttemptKind.ValueType = ATTEMPT_KIND_WORKER_DIED) -> None:
        """Fence a rank, reap its leases, send back the jobs that it ran or whose next room it held.

        `kind` says how its end counts in the job that it ran. What the journal can't take now follows at a later tick.
        """
        self._fence(rank, reason, kind)
        try:
            await self.settle()
        except JournalFull as error:
            log.error("rank %d is fenced; its jobs wait: %s", rank, error)

    def ranks(self) -> set[int]:
        """The fenced ranks whose ends aren't wholly in the journal."""
        return {eviction.rank for eviction in self._unsettled}

    async def settle(self) -> None:
        """Write down what follows from each eviction. Raises JournalFull with the rest left for the next tick."""
        for eviction in list(self._unsettled):
            for job_id in self._core.ledger.concerning(eviction.rank):
                while await self._send_back(job_id, eviction):
                    pass  # the job may have moved on meanwhile: look again
            # Jobs first: they should know of the attempt before another worker begins the next.
            await self._core.ledger.journal.forget_worker(eviction.rank)
            if eviction in self._unsettled:
                self._unsettled.remove(eviction)
            self._core.dispatcher.work.set()

    def _fence(self, rank: int, reason: str, kind: AttemptKind.ValueType) -> None:
        """Do the part that needs no disk: from here on the rank can change nothing, and others get its dispatches."""
        core = self._core
        if core.fleet.remove(rank) is None:
            return
        log.warning("worker is gone: %s", reason, extra={"rank": rank})
        redelivered: set[str] = set()
        for ring in core.rings.values():
            ring.fence(rank)  # before the look: a rank that reaches the rings by itself may still be changing them
        handed_back = self._handed_back(rank)
        for ring in core.rings.values():
            claims, removed = ring.reap(rank)
            redelivered.update(claimed.dispatch.job_id for claimed in claims)
            core.removed.extend(removed)
        core.quarantine.gone(rank, kind == ATTEMPT_KIND_WORKER_SICK)
        self._unsettled.append(_Eviction(rank, reason, kind, frozenset(handed_back), frozenset(redelivered)))

    def _handed_back(self, rank: int) -> set[jobs.DispatchKey]:
        """Dispatches that aren't this rank's: where it had one, a nack gave it to others."""
        return {
            (ring.name, slot.slot, slot.ticket)
            for ring in self._core.rings.values()
            for slot in ring.slots()
            if slot.kind in (Kind.READY, Kind.LEASED) and slot.rank != rank  # what is READY for it goes with it
        }

    async def _send_back(self, job_id: str, eviction: _Eviction) -> bool:
        """Send back a job that the rank ran, or whose next room it held. Returns whether there was something to do.

        Changes that the rank asked for before it was fenced, and those just being written, come first.
        """
        entry = await self._core.ledger.settled(job_id)
        if entry is None:
            return False
        if jobs.is_running(entry) and entry.lease.rank == eviction.rank:
            if jobs.dispatch_key(entry.lease) in eviction.handed_back:  # it drained, and nothing was wrong
                await self._lifecycle.apply_if_same(entry, jobs.hand_back)
                return False
            redelivered = job_id in eviction.redelivered
            await self._lifecycle.worker_lost(entry, eviction.reason, eviction.kind, redelivered=redelivered)
            return True
        if not jobs.is_running(entry) and jobs.dispatch_of(entry).room.owner_rank == eviction.rank:
            await self._lifecycle.room_lost(entry, eviction.reason)
            return True
        return False
