"""The loop of every worker, whatever its role: claim -> fetch -> run stage -> store -> publish -> ack.

`Worker` claims and answers for itself; what happens between a claim and its ack is in `triptych.phase`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time

from triptych import ids
from triptych.errors import DeadlinePassed, Fenced, LeaseLost
from triptych.health import FAILURES_MAX
from triptych.link import PASSING, Link
from triptych.phase import RETRY_PAUSE_S, SPACE_WAIT_S, Equipment, Phases
from triptych.rings.access import RingAccess
from triptych.rings.ring import Claimed
from triptych.roles import NEXT, RING_OF
from triptych.running import Running
from triptych.v1 import fleet_service_pb2, worker_pb2
from triptych.v1.ring_service_pb2 import Lease

CLAIM_WAIT_S = 30.0
"""One claim waits so long at the controller: twice a minute costs nothing, and a lost controller is noticed."""
REPORT_TIMEOUT_S = 5.0
"""How long a quarantine waits until the controller can know of it; without a controller nothing is claimed anyway."""

log = logging.getLogger(__name__)


class Worker:
    """One stage, one arena, one job at a time."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment, self._stage, self._arena = equipment, equipment.stage, equipment.arena
        self._instance_id = ids.new_instance_id()
        self._running: Running | None = None
        self._direct: asyncio.Queue[Claimed] = asyncio.Queue()
        self._identity = (0, 0)
        """Rank, and the controller's epoch."""
        self._declared: Running | None = None
        """The job that the last registration named."""
        self._handed_over: list[Lease] = []
        """Leases of what waits in `_direct`."""
        self.draining = asyncio.Event()

    @property
    def address(self) -> str:
        """`host:port` under which others reach this worker."""
        return self._equipment.address

    def connect(self, link: Link, access: RingAccess) -> None:
        """Tie the worker to its controller and to the rings of its role."""
        role = self._stage.role
        self.link, self._access, self._source = link, access, access.ring(RING_OF[role])
        sink = access.ring(RING_OF[NEXT[role]]) if role in NEXT else None
        self._phases = Phases(self._equipment, link, self._source, sink)

    def leases(self) -> list[Lease]:
        """The leases that the worker holds, also those that no claim of its own gave it."""
        running = [self._running.claimed.lease] if self._running is not None and not self._running.lost else []
        return running + self._handed_over

    # -- what the link asks ---------------------------------------------------------------------------------------

    def describe(self) -> fleet_service_pb2.RegisterWorkerRequest:
        """See `link.Member`."""
        room_ids = self._arena.rooms()
        request = fleet_service_pb2.RegisterWorkerRequest(
            instance_id=self._instance_id,
            role=self._stage.role,
            address=self._equipment.address,
            host_id=self._arena.host_id,
            model=self._equipment.model,
            room_ids=room_ids,
            arena_size_bytes=self._arena.size_bytes,
            process_id=os.getpid(),
            parameter_bytes=self._stage.parameter_bytes,
            mooncake=self._equipment.mooncake,
            stage_settings=self._stage.settings,
        )
        self._declared = self._running
        if self._running is not None:
            self._running.declared_room_ids = frozenset(room_ids)
        if self._running is not None and not self._running.lost:
            request.running.dispatch.CopyFrom(self._running.dispatch)
            request.running.lease.CopyFrom(self._running.claimed.lease)
        return request

    def report(self) -> fleet_service_pb2.HeartbeatRequest:
        """See `link.Member`."""
        report = fleet_service_pb2.HeartbeatRequest(
            state=self._state(),
            arena_used_bytes=self._arena.used_bytes,
            room_count=len(self._arena.rooms()),
            device_memory_bytes=self._stage.device_memory_bytes,
            fetch_count_by_mover=self._phases.fetch_count_by_mover,
            rings=self._access.choice,
            waiting_for=self._waiting_for(),
            held_leases=self.leases(),
        )
        if (running := self._running) is not None:
            report.progress.job_id = running.dispatch.job_id
            report.progress.generation = running.dispatch.generation
            report.progress.step, report.progress.step_count = running.step, running.step_count
            report.progress.preview_png, running.preview_png = running.preview_png, b""
        return report

    def registered(self, response: fleet_service_pb2.RegisterWorkerResponse) -> None:
        """See `link.Member`."""
        kept = 0
        self._drop_stale_direct(response)
        if (running := self._running) is not None:
            if running is not self._declared:  # a late claim: the answer says nothing of it
                if (running.claimed.lease.rank, running.epoch) != (response.rank, response.epoch):
                    running.lost = running.stop = True  # its ring is gone, or its rank was reaped
            elif response.HasField("adopted_lease"):
                running.claimed = running.claimed._replace(lease=response.adopted_lease)
                running.epoch = response.epoch
                kept = running.room_id  # made, but the controller hasn't heard of it yet
            else:
                running.lost = running.stop = True
        for room_id in response.release_room_ids:
            if room_id != kept:
                self._arena.release(room_id)

    def _drop_stale_direct(self, response: fleet_service_pb2.RegisterWorkerResponse) -> None:
        """Forget what was handed over under another rank or epoch: the controller has queued it for anyone."""
        if (response.rank, response.epoch) != self._identity:
            self._handed_over.clear()
            while not self._direct.empty():
                self._direct.get_nowait()
        self._identity = (response.rank, response.epoch)

    def obey(self, orders: fleet_service_pb2.HeartbeatResponse) -> None:
        """See `link.Member`."""
        for room_id in orders.release_room_ids:
            self._arena.release(room_id)
        if self._running is not None and self._running.dispatch.job_id in orders.cancel_job_ids:
            self._running.stop = True
        if self._source.name in orders.ready_rings:
            self._source.hint()
        if orders.drain:
            self.draining.set()

    def snapshot(self) -> worker_pb2.Worker:
        """The worker for people."""
        worker = worker_pb2.Worker(
            rank=self.link.rank,
            role=self._stage.role,
            state=self._state(),
            address=self._equipment.address,
            host_id=self._arena.host_id,
            process_id=os.getpid(),
            model=self._equipment.model.model,
            arena_size_bytes=self._arena.size_bytes,
            arena_used_bytes=self._arena.used_bytes,
            room_count=len(self._arena.rooms()),
            parameter_bytes=self._stage.parameter_bytes,
            device_memory_bytes=self._stage.device_memory_bytes,
            component_bytes=self._stage.component_bytes,
            fetch_count_by_mover=self._phases.fetch_count_by_mover,
            rings=self._access.choice,
            mooncake=self._equipment.mooncake,
            waiting_for=self._waiting_for(),
        )
        if (running := self._running) is not None:
            worker.job_id = running.dispatch.job_id
            worker.step, worker.step_count = running.step, running.step_count
        return worker

    def _state(self) -> worker_pb2.WorkerState.ValueType:
        if self.draining.is_set():
            return worker_pb2.WORKER_STATE_DRAINING
        if self._phases.health.is_suspect:
            return worker_pb2.WORKER_STATE_QUARANTINED
        if self._phases.waiting_for:
            return worker_pb2.WORKER_STATE_FULL
        return worker_pb2.WORKER_STATE_BUSY if self._running else worker_pb2.WORKER_STATE_IDLE

    def _waiting_for(self) -> str:
        if self._phases.health.is_suspect:
            return f"its own check: {FAILURES_MAX} different jobs failed here in a row"
        return self._phases.waiting_for

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `draining` is set and what is in hand is done. Raises WorkerBroken."""
        while not self.draining.is_set():
            if self._phases.health.is_suspect:
                await self._check_health()
                continue
            await self._phases.wait_for_space(self._phases.room_bytes_expected, self.draining.is_set)
            claimed = await self._next()
            if claimed is None:
                continue
            self._running = Running(claimed, self.link.epoch)
            self._handed_over = [lease for lease in self._handed_over if lease != claimed.lease]
            self.link.notify()
            try:
                await self._phases.run(self._running, self.draining.is_set)
            finally:
                self._running = None
                self.link.notify()

    async def _check_health(self) -> None:
        """Claim nothing, have the controller know it, and find out whether the jobs or we are to blame."""
        log.error("quarantined: %d different jobs failed here in a row", FAILURES_MAX, extra={"rank": self.link.rank})
        await self.link.reported(REPORT_TIMEOUT_S)
        await self._hand_over()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), self._phases.health.pause_s)
            return
        await self._phases.check_health()
        log.warning("back from quarantine: a job of its own was done", extra={"rank": self.link.rank})
        self.link.notify()

    async def _hand_over(self) -> None:
        """What was handed to us directly goes to others. Where that can't be said, the controller finds out."""
        while not self._direct.empty():
            lease = self._direct.get_nowait().lease
            with contextlib.suppress(LeaseLost, Fenced, *PASSING):
                await self._source.nack(lease)
            self._handed_over = [kept for kept in self._handed_over if kept != lease]

    async def drain(self) -> None:
        """Wait, within `release_timeout_s`, until the rooms held here are released.

        What is left then is lost with the worker, and costs its jobs a stage. A worker whose controller is gone for
        longer than the worker timeout counts as dead, and waits no more.
        """
        deadline_s = time.monotonic() + self._equipment.config.release_timeout_s
        while self._arena.rooms() and time.monotonic() < deadline_s and not self.link.is_cut_off:
            with contextlib.suppress(DeadlinePassed):
                await self._arena.wait_for_space(self._arena.largest_gap_bytes + 1, SPACE_WAIT_S)

    def hand_back(self) -> None:
        """Stop the job in hand, so that another worker gets it."""
        if self._running is not None:
            self._running.stop = True

    @property
    def is_free(self) -> bool:
        """Whether a direct job would start at once."""
        is_idle = self._running is None and self._direct.empty()
        takes_work = not (self._waiting_for() or self.draining.is_set())
        return is_idle and takes_work

    def take_direct(self, claimed: Claimed) -> None:
        """Work on this next; its lease is ours already."""
        self._handed_over.append(claimed.lease)
        self._direct.put_nowait(claimed)

    async def _next(self) -> Claimed | None:
        """The next dispatch, from the ring or handed over directly; None when there was none for a while."""
        if not await self._until_registered():
            return None
        claim = asyncio.create_task(self._claim())
        others = [asyncio.create_task(self._direct.get()), asyncio.create_task(self.draining.wait())]
        await asyncio.wait([claim, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in (claim, *others):
            task.cancel()
        claimed, handed, _draining = await asyncio.gather(claim, *others, return_exceptions=True)
        if isinstance(claimed, Exception):
            raise claimed
        if isinstance(claimed, Claimed) and isinstance(handed, Claimed):
            self._direct.put_nowait(handed)  # both came at once: this one next time
        return next((c for c in (claimed, handed) if isinstance(c, Claimed)), None)

    async def _until_registered(self) -> bool:
        """Wait for a controller; False where this worker is to end first."""
        waits = [asyncio.create_task(self.link.wait_registered()), asyncio.create_task(self.draining.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self.draining.is_set()

    async def _claim(self) -> Claimed | None:
        try:
            return await self._source.claim(self.link.rank, CLAIM_WAIT_S)
        except (*PASSING, Fenced, LeaseLost):
            await asyncio.sleep(RETRY_PAUSE_S)
            return None
