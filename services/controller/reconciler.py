"""Journal, rings and workers are compared, always, at a bounded cost: what fell between them is taken up again.

    what is seen                                             for so long         what is done
    a waiting job: in no queue, in no ring, and with no      worker_timeout_s    it is queued anew
      publisher that still works on it or may come back
    a lease that its worker's reports don't name, of a job   worker_timeout_s    it goes back into the ring, for
      that doesn't run under it                                                  anyone
    a job that runs under such a lease                       worker_timeout_s    the worker is asked to register
                                                                                 anew, and says what it holds
    a worker that reports IDLE, beside an entry of its       2 worker_timeout_s  it is asked to register anew
      ring that it could claim: always the same entry        4 worker_timeout_s  it is declared dead

One ring is looked at in each tick, and as many jobs as `JOBS_PER_LOOK` says. Whatever is done here is harmless where it
was not needed: of two dispatches of a job the second to start is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from services.controller import jobs
from services.controller.controller import Controller
from triptych.errors import Fenced, LeaseLost
from triptych.rings.layout import Kind
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import SlotState
from triptych.roles import RING_OF, ring_name
from triptych.v1.dispatch_pb2 import Ring, Role
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.worker_pb2 import WORKER_STATE_IDLE

log = logging.getLogger(__name__)

JOBS_PER_LOOK = 1000
"""Waiting jobs looked at in one tick: about a millisecond. A backlog of 10,000 is gone through in some 15 s."""
REPORTS_MIN = 3
"""Reports that must have come meanwhile: one that was sent before what it doesn't name says nothing."""
IDLE_TIMEOUTS, BURIAL_TIMEOUTS = 2, 4
"""Times `worker_timeout_s`: how long a worker may be idle beside work."""

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Suspicion:
    """Something that looks wrong."""

    since_s: float
    report_count: int
    """Its worker's reports up to then."""
    is_told: bool = False
    """Whether its worker was asked to register anew."""


class Suspicions(Generic[Key]):
    """What looks wrong, each since it was seen so without a break. Pure."""

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
        """Something was done about it: it begins anew."""
        del self._known[key]


class Reconciler:
    """See the module's docstring."""

    def __init__(self, controller: Controller, bury: Callable[[int, str], Awaitable[None]]) -> None:
        """`bury` declares a rank dead."""
        self._controller, self._bury = controller, bury
        self._fleet, self._ledger = controller.fleet, controller.ledger
        self._timeout_s = controller.config.worker_timeout_s
        self._turns = list(RING_OF.items())
        self._todo: dict[Role.ValueType, list[str]] = {role: [] for role in RING_OF}
        self._jobs: dict[Role.ValueType, Suspicions[str]] = {role: Suspicions() for role in RING_OF}
        self._leases: dict[Role.ValueType, Suspicions[_Held]] = {role: Suspicions() for role in RING_OF}
        self._idle: dict[Role.ValueType, Suspicions[tuple[int, int]]] = {role: Suspicions() for role in RING_OF}

    async def look(self, now_s: float) -> None:
        """Look at the next ring, and at some of the jobs that wait for its role."""
        role, name = self._turns[0]
        self._turns.append(self._turns.pop(0))
        ring = self._controller.rings[name]
        slots = ring.slots()
        self._look_at_jobs(role, slots, now_s)
        await self._look_at_leases(role, ring, slots, now_s)
        await self._look_at_idle(role, slots, now_s)

    # -- jobs that wait, and nobody knows of them -----------------------------------------------------------------

    def _look_at_jobs(self, role: Role.ValueType, slots: list[SlotState], now_s: float) -> None:
        if any(slot.dispatch is None and slot.kind in (Kind.READY, Kind.LEASED) for slot in slots):
            return  # somebody was writing: another time
        in_ring = {(slot.dispatch.job_id, slot.dispatch.generation) for slot in slots if slot.dispatch is not None}
        suspicions, todo = self._jobs[role], self._todo[role]
        if not todo:
            todo.extend(self._ledger.active)
        looked_at = {todo.pop() for _ in range(min(JOBS_PER_LOOK, len(todo)))}.union(suspicions)
        orphans = {job_id: 0 for job_id in looked_at if self._is_orphan(job_id, role, in_ring)}
        for job_id, suspicion in suspicions.see(orphans, now_s):
            if now_s - suspicion.since_s >= self._timeout_s:
                suspicions.drop(job_id)
                log.warning("nobody knew of this job that waits: it is queued anew", extra={"job_id": job_id})
                self._controller.metrics.reconciled("job")
                self._controller.dispatcher.enqueue(self._ledger.active[job_id])

    def _is_orphan(self, job_id: str, role: Role.ValueType, in_ring: set[tuple[str, int]]) -> bool:
        entry = self._ledger.active.get(job_id)
        if entry is None or jobs.is_running(entry) or jobs.role_of(entry) != role:
            return False
        if self._controller.models.is_foreign(entry.job) or self._controller.dispatcher.waits(entry):
            return False
        if (job_id, entry.job.generation) in in_ring:
            return False
        source = jobs.dispatch_of(entry)
        owner = self._fleet.members.get(source.room.owner_rank) if source.HasField("room") else None
        if owner is None:
            return True
        # It may come back from a restart and bring the room, or has yet to publish it.
        return owner.registration is not None and owner.report.progress.job_id != job_id

    # -- leases that nobody knows of ------------------------------------------------------------------------------

    async def _look_at_leases(
        self, role: Role.ValueType, ring: MemoryRing, slots: list[SlotState], now_s: float
    ) -> None:
        job_ids: dict[_Held, str] = {}
        unknown: dict[_Held, int] = {}
        for slot in slots:
            member = self._fleet.members.get(slot.rank) if slot.kind is Kind.LEASED else None
            held = _Held(slot.slot, slot.ticket, slot.attempt, slot.rank)
            if member is None or member.registration is None or member.knows(held.lease(ring.name)):
                continue
            unknown[held] = member.report_count
            job_ids[held] = slot.dispatch.job_id if slot.dispatch is not None else ""
        for job_id in self._ledger.progress:  # those that were begun: also under a lease that is in no ring
            entry = self._ledger.active.get(job_id)
            if entry is None or not jobs.is_running(entry) or jobs.role_of(entry) != role:
                continue
            member = self._fleet.members.get(entry.lease.rank)
            if member is not None and member.registration is not None and not member.knows(entry.lease):
                held = _Held(entry.lease.slot, entry.lease.ticket, entry.lease.attempt, entry.lease.rank)
                unknown[held], job_ids[held] = member.report_count, job_id
        suspicions = self._leases[role]
        for held, suspicion in suspicions.see(unknown, now_s):
            report_count = unknown[held] - suspicion.report_count
            if now_s - suspicion.since_s >= self._timeout_s and report_count >= REPORTS_MIN:
                suspicions.drop(held)
                await self._take_back(ring, held.lease(ring.name), job_ids[held])

    async def _take_back(self, ring: MemoryRing, lease: Lease, job_id: str) -> None:
        entry, extra = self._ledger.active.get(job_id), {"rank": lease.rank, "job_id": job_id}
        self._controller.metrics.reconciled("lease")
        if entry is not None and jobs.is_running(entry) and entry.lease == lease:
            log.warning("its worker doesn't know of this job that runs: it is asked to register anew", extra=extra)
            self._fleet.get(lease.rank).end_stream()
            return
        log.warning("its worker doesn't know of this lease: it is taken back", extra=extra)
        try:
            await ring.nack(lease)
        except (LeaseLost, Fenced) as error:
            log.info("it needed no taking back: %s", error)

    # -- workers that are idle beside work ------------------------------------------------------------------------

    async def _look_at_idle(self, role: Role.ValueType, slots: list[SlotState], now_s: float) -> None:
        ready = [slot for slot in slots if slot.kind is Kind.READY]
        idle: dict[tuple[int, int], int] = {}
        for member in self._fleet.alive(role):
            oldest = min((slot.ticket for slot in ready if slot.rank in (0, member.rank)), default=None)
            is_heard = now_s - member.seen_s < self._timeout_s
            if oldest is not None and is_heard and member.report.state == WORKER_STATE_IDLE:
                idle[member.rank, oldest] = member.report_count
        place = ring_name(RING_OF[role])
        for (rank, _ticket), suspicion in self._idle[role].see(idle, now_s):
            timeouts = (now_s - suspicion.since_s) / self._timeout_s
            if timeouts >= BURIAL_TIMEOUTS:
                await self._bury(rank, f"rank {rank} is idle beside work in {place}")
            elif timeouts >= IDLE_TIMEOUTS and not suspicion.is_told:
                suspicion.is_told = True
                self._controller.metrics.reconciled("worker")
                log.warning("idle beside work in %s: asked to register anew", place, extra={"rank": rank})
                self._fleet.get(rank).end_stream()


class _Held(NamedTuple):
    """A lease of a ring."""

    slot: int
    ticket: int
    attempt: int
    rank: int

    def lease(self, name: Ring.ValueType) -> Lease:
        return Lease(ring=name, **self._asdict())
