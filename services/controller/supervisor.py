"""The controller's side of workers' lives: they register, fall silent, come back; the controller itself restarts.

Order matters when a worker dies: **fence, then reap**. First the rank is forgotten, so that its every call is
refused; only then are its leases given to others. A slow rank that wakes up finds nothing that it can write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from services.controller import jobs
from services.controller.controller import Controller, attempt_of
from services.controller.fleet import check_role
from services.controller.graves import Grave
from services.controller.reconciler import Reconciler
from services.controller.turns import in_turns
from triptych.errors import Fenced, InvalidRequest, JournalFull, LeaseLost, NotAllowed, RingFull
from triptych.rings.layout import Kind
from triptych.rings.recovery import PAST_CAP
from triptych.rings.ring import Removed
from triptych.roles import RING_OF, ring_name, role_name
from triptych.telemetry import RingDepth
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, ROLE_UNSPECIFIED, Role
from triptych.v1.fleet_service_pb2 import RegisterWorkerRequest, RegisterWorkerResponse, RunningPhase
from triptych.v1.job_pb2 import (
    ATTEMPT_KIND_GIVEN_UP,
    ATTEMPT_KIND_ROOM_LOST,
    ATTEMPT_KIND_WORKER_DIED,
    ATTEMPT_KIND_WORKER_SICK,
    Attempt,
    AttemptKind,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often deadlines and silence are looked at: a fraction of any sensible timeout, and next to no CPU."""
NAME_CHARS_MAX = 256
"""Longest instance id, address or host id: a UUID takes 36 characters, a host's name at most 253."""


class Supervisor:
    """Registers and buries workers on behalf of a `Controller`."""

    def __init__(self, controller: Controller, epoch: int, result_url: str) -> None:
        self._controller = controller
        self._fleet = controller.fleet
        self._ledger = controller.ledger
        self._epoch = epoch
        self.result_url = result_url
        self._background = controller.background
        self._reconciler = Reconciler(controller, lambda rank, reason: self.bury(rank, reason, ATTEMPT_KIND_GIVEN_UP))
        self._removed: list[Removed] = []
        self._graves: list[Grave] = []
        """What a full disk must not make us forget: each stays until the journal has taken what follows from it."""
        self._unpublished: set[str] = set()
        """Jobs found waiting for a room's owner to come back, after a restart."""
        self.depths: list[RingDepth] = []
        """As of the last tick. The rings themselves belong to this thread, and metrics are read by another."""

    # -- the controller's own start ---------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier controller left: give every worker that it names the usual time to come back."""
        now_s = asyncio.get_running_loop().time()
        await self._ledger.journal.name_models()
        for rank in await self._ledger.journal.ranks():  # jobs may be addressed to it, and it may never come back
            self._fleet.expect(rank, now_s)
        async for entry in in_turns(await self._ledger.load()):
            for rank in jobs.rooms(entry).values():
                self._fleet.expect(rank, now_s)
            if jobs.is_running(entry):
                self._fleet.expect(entry.lease.rank, now_s)
            elif jobs.role_of(entry) == ROLE_ENCODER:
                self._controller.dispatcher.enqueue(entry)
            else:
                self._unpublished.add(entry.job.job_id)
        if self._ledger.active:
            log.info("recovered %d unfinished jobs in epoch %d", len(self._ledger.active), self._epoch)
        self._controller.models.log_waiting()

    # -- workers come -----------------------------------------------------------------------------------------

    async def register(self, request: RegisterWorkerRequest) -> RegisterWorkerResponse:
        """Make a worker known, settle what it holds, and give it (back) its rank and its job.

        The same again when a worker asks again because the answer was lost. Raises Fenced for what is older than a
        registration that was taken.

        Raises JournalFull with half of it done; the worker's next try does the rest.
        """
        if request.role not in jobs.WAITING:
            raise InvalidRequest("role", role_name(request.role), "ROLE_ENCODER, ROLE_TRANSFORMER or ROLE_DECODER")
        check_role(request.role)
        if not request.instance_id or not request.address:
            raise InvalidRequest("instance_id, address", "", "both, not empty")
        if max(len(request.instance_id), len(request.address), len(request.host_id)) > NAME_CHARS_MAX:
            raise InvalidRequest("instance_id, address, host_id", "a long text", f"up to {NAME_CHARS_MAX} characters")
        if not request.model.config_digest:
            raise InvalidRequest("model.config_digest", "", "the digest of the model's configuration")
        async with self._controller.models.registering:
            await self._controller.models.take(request)
            rank = await self._rank_of(request.instance_id)
            known = self._fleet.members.get(rank)
            if known is not None and known.role not in (ROLE_UNSPECIFIED, request.role):
                raise NotAllowed(f"instance_id names a worker of the role {role_name(known.role)}")
            member = self._fleet.register(rank, request, asyncio.get_running_loop().time())
        async with member.settling:
            lease = await self._settle_running(rank, request.running)
            held = set(request.room_ids)
            release = await self._settle_rooms(rank, held)
        if self._fleet.members.get(rank) is not member:
            raise Fenced(f"rank {rank} was declared dead while it registered; register anew")
        log.info("registered %s at %s", Role.Name(request.role), request.address, extra={"rank": rank})
        self._controller.dispatcher.work.set()
        config = self._controller.config
        response = RegisterWorkerResponse(
            rank=rank, epoch=self._epoch, release_room_ids=release, result_url=self.result_url
        )
        if lease is not None:
            response.adopted_lease.CopyFrom(lease)
        response.heartbeat_interval.FromNanoseconds(int(config.heartbeat_interval_s * 1e9))
        response.worker_timeout.FromNanoseconds(int(config.worker_timeout_s * 1e9))
        return response

    async def _rank_of(self, instance_id: str) -> int:
        """The rank of a worker's process, never one that was declared dead."""
        while True:
            await self._fill_graves()
            rank = await self._ledger.journal.rank_of(instance_id)
            if all(grave.rank != rank for grave in self._graves):  # it may have died since
                return rank

    async def _settle_running(self, rank: int, running: RunningPhase) -> Lease | None:
        """The lease under which a worker may go on with the job that it says it runs, if it may."""
        adopted: Lease | None = None
        entry = await self._ledger.settled(running.dispatch.job_id)
        if entry is not None and entry.job.generation == running.dispatch.generation:
            adopted = await self._adopt(rank, entry, running)
        if adopted is None:
            await self._let_go(rank, running)
        for job_id in self._ledger.concerning(rank):
            other = self._ledger.active.get(job_id)
            if other is not None and jobs.is_running(other) and other.lease.rank == rank and other.lease != adopted:
                reason = "the worker came back without the job"
                await self._lost(other, rank, reason, ATTEMPT_KIND_GIVEN_UP, redelivered=False)
        return adopted

    async def _let_go(self, rank: int, running: RunningPhase) -> None:
        """A worker drops what it says it runs: do what it now leaves undone after a phase that was completed."""
        ring = self._controller.rings.get(running.lease.ring)
        if ring is not None and running.lease.rank == rank:
            with contextlib.suppress(LeaseLost, Fenced):
                await ring.ack(running.lease)
        entry = self._ledger.active.get(running.dispatch.job_id)
        if entry is None or entry.job.generation != running.dispatch.generation or jobs.is_running(entry):
            return
        if jobs.dispatch_of(entry).room.owner_rank == rank:
            self._controller.dispatcher.enqueue(entry)  # where it had published it, the second to start is refused

    async def _adopt(self, rank: int, entry: JournalEntry, running: RunningPhase) -> Lease | None:
        """The lease of a job that the worker is right to run. A worker runs one job at a time, so where the journal
        names its rank the lease there is its own, also one that an earlier answer told of, and that answer was lost."""
        if running.dispatch.role != jobs.role_of(entry) or self._controller.models.is_foreign(entry.job):
            return None
        ring = self._controller.rings[RING_OF[jobs.role_of(entry)]]
        is_named = jobs.is_running(entry) and entry.lease.rank == rank
        if is_named and ring.holds(entry.lease):
            return entry.lease
        if running.lease.rank == rank and ring.holds(running.lease):
            return running.lease
        if not is_named and not (jobs.is_running(entry) and entry.lease == running.lease):
            return None
        try:
            lease = ring.adopt(jobs.dispatch_of(entry), rank)
        except RingFull:
            return None
        try:
            await self._controller.relet(entry.job.job_id, entry.lease, lease)
        except (LeaseLost, JournalFull) as error:  # nobody will be told of this lease
            with contextlib.suppress(LeaseLost, Fenced):
                await ring.ack(lease)
            if isinstance(error, JournalFull):
                raise
            return None
        return lease

    async def _settle_rooms(self, rank: int, held: set[int]) -> list[int]:
        """Publish what waited for these rooms, send back what needs lost ones. Returns the rooms nobody needs."""
        needed: set[int] = set()
        for job_id in self._ledger.concerning(rank):
            entry = self._ledger.active.get(job_id)
            if entry is None:
                continue
            rooms = jobs.rooms(entry)
            needed.update(room_id for room_id, owner in rooms.items() if owner == rank)
            source = jobs.dispatch_of(entry).room
            if source.owner_rank != rank:
                continue
            if source.room_id not in held:
                reason = "its owner came back without the tensors"
                await self._controller.source_lost(entry, _room_lost(entry, rank, reason))
            elif entry.job.job_id in self._unpublished:
                self._controller.dispatcher.enqueue(entry)
            self._unpublished.discard(entry.job.job_id)
        return sorted(held - needed)

    # -- workers go -------------------------------------------------------------------------------------------

    async def bury(self, rank: int, reason: str, kind: AttemptKind.ValueType = ATTEMPT_KIND_WORKER_DIED) -> None:
        """A rank is dead: fence it, reap its leases, send back the jobs whose next room it held.

        `kind` is what its end is to the job that it ran: nothing that counts, where it left in good order. What the
        journal can't take now is left for the next tick.
        """
        self._fence(rank, reason, kind)
        try:
            await self._fill_graves()
        except JournalFull as error:
            log.error("rank %d is fenced; its jobs wait: %s", rank, error)

    def _fence(self, rank: int, reason: str, kind: AttemptKind.ValueType) -> None:
        """What takes no disk: from here on the rank can change nothing, and others get its dispatches."""
        if self._fleet.remove(rank) is None:
            return
        log.warning("worker is gone: %s", reason, extra={"rank": rank})
        redelivered: set[str] = set()
        for ring in self._controller.rings.values():
            ring.fence(rank)  # before the look: a rank that reaches the rings by itself may still be changing them
        handed_back = self._handed_back(rank)
        for ring in self._controller.rings.values():
            reaped = ring.reap(rank)
            redelivered.update(dispatch.job_id for dispatch in reaped.redelivered_dispatches)
            for removed in reaped.removed:
                self.removed(removed)
        self._controller.quarantine.gone(rank, kind == ATTEMPT_KIND_WORKER_SICK)
        self._graves.append(Grave(rank, reason, kind, frozenset(handed_back), frozenset(redelivered)))

    async def _fill_graves(self) -> None:
        """Write down what follows from each death. Raises JournalFull with the rest left for the next tick."""
        for grave in list(self._graves):
            await self._fill(grave)
            if grave in self._graves:
                self._graves.remove(grave)
            self._controller.dispatcher.work.set()

    async def _fill(self, grave: Grave) -> None:
        """Jobs first: they should know of the attempt before another worker begins the next."""
        for job_id in self._ledger.concerning(grave.rank):
            while await self._bereave(job_id, grave):
                pass  # the job may have moved on meanwhile: look again
        await self._ledger.journal.forget_worker(grave.rank)

    async def _bereave(self, job_id: str, grave: Grave) -> bool:
        """Send a job back that the dead rank ran, or whose next room it held; whether there was something to do.

        What the rank itself had asked for before it was fenced, and what is just being written, comes first.
        """
        entry = await self._ledger.settled(job_id)
        if entry is None:
            return False
        if jobs.is_running(entry) and entry.lease.rank == grave.rank:
            if _token(entry.lease) in grave.handed_back:  # it drained, and nothing was wrong
                await self._controller.unlease(entry)
                return False
            redelivered = job_id in grave.redelivered
            await self._lost(entry, grave.rank, grave.reason, grave.kind, redelivered=redelivered)
            return True
        if not jobs.is_running(entry) and jobs.dispatch_of(entry).room.owner_rank == grave.rank:
            await self._controller.source_lost(entry, _room_lost(entry, grave.rank, grave.reason))
            return True
        return False

    def _handed_back(self, rank: int) -> set[tuple[int, int, int]]:
        """Dispatches that aren't this rank's, as ring, slot and ticket: where it had one, a nack gave it to others."""
        return {
            (name, slot.slot, slot.ticket)
            for name, ring in self._controller.rings.items()
            for slot in ring.slots()
            if slot.kind in (Kind.READY, Kind.LEASED) and slot.rank != rank  # what is READY for it goes with it
        }

    async def _lost(
        self, entry: JournalEntry, rank: int, reason: str, kind: AttemptKind.ValueType, *, redelivered: bool
    ) -> None:
        source, attempt = jobs.dispatch_of(entry), attempt_of(jobs.role_of(entry), rank, reason, kind)
        if source.HasField("room") and source.room.owner_rank not in self._fleet.members:
            await self._controller.source_lost(entry, attempt)
        else:
            await self._controller.lease_lost(entry, attempt, redelivered=redelivered)

    def removed(self, removed: Removed) -> None:
        """A ring took an entry out for good; the next tick settles what becomes of its job."""
        self._removed.append(removed)
        self._controller.dispatcher.work.set()

    async def _settle_removed(self) -> None:
        while self._removed:
            removed = self._removed[-1]
            await self._settle_one(removed)
            self._removed.remove(removed)  # only now: the journal may have refused it

    async def _settle_one(self, removed: Removed) -> None:
        """Whatever took it out of the ring: the journal counts attempts, and what waits is published anew."""
        entry = self._ledger.active.get(removed.dispatch.job_id)
        if entry is None or entry.job.generation != removed.dispatch.generation:
            return
        if jobs.is_running(entry):  # handed back as often as a ring can count, and nobody has claimed it since
            if removed.reason == PAST_CAP and _token(entry.lease) == _token(removed.lease):
                attempt = attempt_of(jobs.role_of(entry), entry.lease.rank, "handed back", ATTEMPT_KIND_GIVEN_UP)
                await self._controller.lease_lost(entry, attempt, redelivered=False)
            return
        self._controller.dispatcher.enqueue(entry)

    # -- time -------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look at the clock once. What fails keeps nothing else from being done."""
        controller = self._controller
        for part in (self._bury_silent, self._bury_stalled, self._look_at_rings):
            await self._background.attempt("tick", part)
        for part in (self._fill_graves, controller.quarantine.settle, self._settle_removed):
            await self._background.attempt("tick", part)
        controller.dispatcher.withdraw_stale()
        for member in self._fleet.registered():
            if not member.takes_work:  # over RDMA something may still be addressed to it
                controller.dispatcher.withdraw(member.rank)
        await self._background.attempt("tick", lambda: self._reconciler.look(asyncio.get_running_loop().time()))

    async def _bury_silent(self) -> None:
        now_s = asyncio.get_running_loop().time()
        timeout_s = self._controller.config.worker_timeout_s
        for rank in self._fleet.silent(now_s, timeout_s):
            await self.bury(rank, f"rank {rank} was silent for {timeout_s:g} s")

    async def _bury_stalled(self) -> None:
        now_s, config = asyncio.get_running_loop().time(), self._controller.config
        for entry in list(self._ledger.active.values()):
            progress = self._ledger.progress.get(entry.job.job_id)
            if not jobs.is_running(entry):
                continue
            rank = entry.lease.rank
            if rank not in self._fleet.members and all(grave.rank != rank for grave in self._graves):
                attempt = attempt_of(jobs.role_of(entry), rank, f"rank {rank} is no more", ATTEMPT_KIND_GIVEN_UP)
                await self._controller.lease_lost(entry, attempt, redelivered=False)
                continue
            if progress is None:
                continue
            # While the disk was full, workers that are done could not say so.
            if now_s - max(progress.seen_s, self._ledger.journal.full_s) > config.stall_timeout_s:
                await self.bury(entry.lease.rank, f"no progress for {config.stall_timeout_s:g} s")

    async def _look_at_rings(self) -> None:
        for ring in self._controller.rings.values():
            if ring.is_shared:
                ring.hint()  # hints of workers may be lost, and it shows whether the card still works
        stats = {ring_name(name): ring.stats() for name, ring in self._controller.rings.items()}
        self.depths = [RingDepth(name, s.ready_count, s.leased_count) for name, s in stats.items()]

    async def run(self) -> None:
        """Tick, expire and publish for ever; cancel to stop. Raises what is in `background.FATAL`."""
        forever = self._background.forever
        async with asyncio.TaskGroup() as group:
            group.create_task(forever("tick", self._tick, TICK_S, TICK_S))
            group.create_task(forever("expire", self._controller.expire, TICK_S))
            group.create_task(forever("publish", self._publish, 0.0, TICK_S))

    async def _tick(self) -> None:
        await self.tick()
        self._controller.dispatcher.work.set()  # a slot may have become free since

    async def _publish(self) -> None:
        await self._controller.dispatcher.work.wait()
        self._controller.dispatcher.work.clear()
        await self._controller.dispatcher.publish_waiting()


def _room_lost(entry: JournalEntry, rank: int, reason: str) -> Attempt:
    return attempt_of(jobs.role_of(entry), rank, reason, ATTEMPT_KIND_ROOM_LOST)


def _token(lease: Lease) -> tuple[int, int, int]:
    return lease.ring, lease.slot, lease.ticket
