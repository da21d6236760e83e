"""Journal, rings and workers are compared all the time, at a bounded cost: what got lost between them is found.

    what is seen                                             for so long         what is done
    a waiting job: in no queue, in no ring, and with no      worker_timeout_s    it is queued again
      publisher that still works on it or may come back
    a lease that its worker's reports don't name, of a job   worker_timeout_s    it goes back into the ring, for
      that doesn't run under it                                                  anyone
    a job that runs under such a lease                       worker_timeout_s    the worker is asked to register
                                                                                 again, and says what it holds
    a worker that reports IDLE, beside an entry of its       2 worker_timeout_s  it is asked to register again
      ring that it could claim: always the same entry        4 worker_timeout_s  it is evicted

Each tick looks at one ring and at `JOBS_PER_LOOK` jobs. What is done here does no harm where it wasn't needed: of two
dispatches of a job the second to start is refused.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from triptych.errors import Fenced, LeaseLost
from triptych.rings.layout import Kind
from triptych.rings.ring import SlotState
from triptych.roles import ROLES, ring_name
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.job_pb2 import ATTEMPT_KIND_GIVEN_UP, AttemptKind
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.worker_pb2 import WORKER_STATE_IDLE

from . import jobs
from .core import Core

log = logging.getLogger(__name__)

JOBS_PER_LOOK = 1000
"""Waiting jobs looked at in one tick: about a millisecond. A backlog of 10,000 is gone through in some 15 s."""
REPORTS_MIN = 3
"""Reports that must have come meanwhile: one that was sent before what it doesn't name says nothing."""
IDLE_TIMEOUTS = 2
EVICTION_TIMEOUTS = 4
"""Times `worker_timeout_s`: how long a worker may be idle beside work until it is asked to register, and evicted."""

Key = TypeVar("Key", bound=Hashable)
Evict = Callable[[int, str, AttemptKind.ValueType], Awaitable[None]]
"""Evicts a rank, for a reason; the last argument says what that is to the job that it ran."""


@dataclass
class Suspicion:
    """Something that looks wrong."""

    since_s: float
    report_count: int
    """Its worker's reports up to then."""
    is_told: bool = False
    """Whether its worker was asked to register again."""


class Suspicions(Generic[Key]):
    """Things that look wrong, each since it was first seen so without a break. Pure."""

    def __init__(self) -> None:
        self._known: dict[Key, Suspicion] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._known))

    def see(self, found: Mapping[Key, int], now_s: float) -> list[tuple[Key, Suspicion]]:
        """These look wrong now, with their workers' numbers of reports; what isn't among them looks right again."""
        self._known = {
            key: self._known.get(key) or Suspicion(now_s, report_count) for key, report_count in found.items()
        }
        return list(self._known.items())

    def drop(self, key: Key) -> None:
        """Something was done about it: its time begins again."""
        del self._known[key]


class Reconciler:
    """Looks at one ring after the other."""

    def __init__(self, core: Core, evict: Evict) -> None:
        self._turns = itertools.cycle([_Comparison(core, evict, role) for role in ROLES])

    async def look(self, now_s: float) -> None:
        """Look at the next ring, and at some of the jobs that wait for its role."""
        await next(self._turns).look(now_s)


class _Comparison:
    """Of one role's ring with its jobs and workers."""

    def __init__(self, core: Core, evict: Evict, role: Role.ValueType) -> None:
        self._core = core
        self._evict = evict
        self._fleet = core.fleet
        self._ledger = core.ledger
        self._timeout_s = core.config.worker_timeout_s
        self._role = role
        self._ring = core.rings[role]
        self._todo: list[str] = []
        self._jobs: Suspicions[str] = Suspicions()
        self._leases: Suspicions[_Held] = Suspicions()
        self._idle: Suspicions[tuple[int, int]] = Suspicions()

    async def look(self, now_s: float) -> None:
        slots = self._ring.slots()
        self._look_at_jobs(slots, now_s)
        await self._look_at_leases(slots, now_s)
        await self._look_at_idle(slots, now_s)

    # -- jobs that wait, and nobody knows of them -----------------------------------------------------------------

    def _look_at_jobs(self, slots: list[SlotState], now_s: float) -> None:
        if any(slot.dispatch is None and slot.kind in (Kind.READY, Kind.LEASED) for slot in slots):
            return  # somebody was writing: another time
        in_ring = {(slot.dispatch.job_id, slot.dispatch.generation) for slot in slots if slot.dispatch is not None}
        todo = self._todo
        if not todo:
            todo.extend(self._ledger.active)
        looked_at = {todo.pop() for _ in range(min(JOBS_PER_LOOK, len(todo)))}.union(self._jobs)
        orphans = {job_id: 0 for job_id in looked_at if self._is_orphan(job_id, in_ring)}
        for job_id, suspicion in self._jobs.see(orphans, now_s):
            if now_s - suspicion.since_s >= self._timeout_s:
                self._jobs.drop(job_id)
                log.warning("nobody knew of this job that waits: it is queued again", extra={"job_id": job_id})
                self._core.metrics.reconciled("job")
                self._core.dispatcher.enqueue(self._ledger.active[job_id])

    def _is_orphan(self, job_id: str, in_ring: set[tuple[str, int]]) -> bool:
        entry = self._ledger.active.get(job_id)
        if entry is None or jobs.is_running(entry) or jobs.role_of(entry) != self._role:
            return False
        if self._core.model.is_foreign(entry.job) or self._core.dispatcher.waits(entry):
            return False
        if (job_id, entry.job.generation) in in_ring:
            return False
        source = jobs.dispatch_of(entry)
        owner = self._fleet.members.get(source.room.owner_rank) if source.HasField("room") else None
        if owner is None:
            return True
        # It may come back from a restart and bring the room, or has yet to publish it.
        return owner.registration is not None and owner.status.progress.job_id != job_id

    # -- leases that nobody knows of ------------------------------------------------------------------------------

    async def _look_at_leases(self, slots: list[SlotState], now_s: float) -> None:
        leases = {
            _Held(slot.slot, slot.ticket, slot.attempt, slot.rank): slot.dispatch.job_id if slot.dispatch else ""
            for slot in slots
            if slot.kind is Kind.LEASED
        }
        for job_id in self._ledger.progress:  # those that were begun: also under a lease that is in no ring
            entry = self._ledger.active.get(job_id)
            if entry is not None and jobs.is_running(entry) and jobs.role_of(entry) == self._role:
                lease = entry.lease
                leases[_Held(lease.slot, lease.ticket, lease.attempt, lease.rank)] = job_id
        unknown: dict[_Held, int] = {}
        for held in leases:
            member = self._fleet.members.get(held.rank)
            if member is not None and member.registration is not None and not member.knows(self._lease(held)):
                unknown[held] = member.report_count
        for held, suspicion in self._leases.see(unknown, now_s):
            report_count = unknown[held] - suspicion.report_count
            if now_s - suspicion.since_s >= self._timeout_s and report_count >= REPORTS_MIN:
                self._leases.drop(held)
                await self._take_back(self._lease(held), leases[held])

    def _lease(self, held: _Held) -> Lease:
        return Lease(ring=self._ring.name, **held._asdict())

    async def _take_back(self, lease: Lease, job_id: str) -> None:
        entry = self._ledger.active.get(job_id)
        extra = {"rank": lease.rank, "job_id": job_id}
        self._core.metrics.reconciled("lease")
        if entry is not None and jobs.is_running(entry) and entry.lease == lease:
            log.warning("its worker doesn't know of this job that runs: it is asked to register again", extra=extra)
            self._fleet.get(lease.rank).end_stream()
            return
        log.warning("its worker doesn't know of this lease: it is taken back", extra=extra)
        try:
            await self._ring.nack(lease)
        except (LeaseLost, Fenced) as error:
            log.info("it needed no taking back: %s", error)

    # -- workers that are idle beside work ------------------------------------------------------------------------

    async def _look_at_idle(self, slots: list[SlotState], now_s: float) -> None:
        ready = [slot for slot in slots if slot.kind is Kind.READY]
        idle: dict[tuple[int, int], int] = {}
        for member in self._fleet.alive(self._role):
            oldest = min((slot.ticket for slot in ready if slot.rank in (0, member.rank)), default=None)
            is_heard = now_s - member.seen_s < self._timeout_s
            if oldest is not None and is_heard and member.status.state == WORKER_STATE_IDLE:
                idle[member.rank, oldest] = member.report_count
        place = ring_name(self._ring.name)
        for (rank, _ticket), suspicion in self._idle.see(idle, now_s):
            timeouts = (now_s - suspicion.since_s) / self._timeout_s
            if timeouts >= EVICTION_TIMEOUTS:
                await self._evict(rank, f"rank {rank} is idle beside work in {place}", ATTEMPT_KIND_GIVEN_UP)
            elif timeouts >= IDLE_TIMEOUTS and not suspicion.is_told:
                suspicion.is_told = True
                self._core.metrics.reconciled("worker")
                log.warning("idle beside work in %s: asked to register again", place, extra={"rank": rank})
                self._fleet.get(rank).end_stream()


class _Held(NamedTuple):
    """A lease of a ring."""

    slot: int
    ticket: int
    attempt: int
    rank: int
