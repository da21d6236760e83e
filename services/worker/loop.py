"""The loop of every worker, whatever its role: claim a dispatch, run its phase, claim the next.

`phase` has what happens between a claim and its ack, `membership` what the worker tells its controller.
"""

from __future__ import annotations

import asyncio
import logging
import time

from triptych.errors import Fenced, LeaseLost
from triptych.rings.access import RingAccess
from triptych.rings.ring import Claimed
from triptych.rpc.backoff import Backoff

from .equipment import Equipment
from .health import FAILURES_MAX
from .link import TRANSIENT, Link, any_set
from .phase import Phases
from .rooms import SPACE_WAIT_S
from .running import Running

CLAIM_WAIT_S = 30.0
"""One claim waits so long at the controller: twice a minute costs nothing, and a lost controller is noticed."""
REPORT_TIMEOUT_S = 5.0
"""How long a quarantine waits until the controller can know of it; without a controller nothing is claimed anyway."""

log = logging.getLogger(__name__)


class Worker:
    """One stage, one arena, one job at a time."""

    def __init__(
        self, equipment: Equipment, link: Link, access: RingAccess, phases: Phases, draining: asyncio.Event
    ) -> None:
        self.equipment = equipment
        self.link = link
        self.access = access
        self.phases = phases
        self.source = access.ring(equipment.stage.role)
        """The ring that its role claims from."""
        self.running: Running | None = None
        """The job in hand, with its lease."""
        self.draining = draining
        """Set when the worker is to end; it stays set."""
        self._backoff = Backoff()

    @property
    def waiting_for(self) -> str:
        """What keeps the worker from claiming, in a sentence; empty where nothing does."""
        if self.phases.health.is_suspect:
            return f"its own check: {FAILURES_MAX} different jobs failed here in a row"
        if (text_encoder := self.equipment.text_encoder) is not None and text_encoder.absent_for:
            return text_encoder.absent_for
        return self.phases.rooms.waiting_for

    @property
    def is_free(self) -> bool:
        """Whether it would begin a job immediately."""
        return self.running is None and not self.waiting_for and not self.draining.is_set()

    @property
    def takes_work(self) -> bool:
        """Whether it begins jobs, now or after the one in hand: what SERVING means."""
        return self.link.registered.is_set() and not (self.phases.health.is_suspect or self.draining.is_set())

    async def run(self) -> None:
        """Work until `draining` is set and the job in hand is done. Raises WorkerBroken."""
        while not self.draining.is_set():
            if self.phases.health.is_suspect:
                await self._check_health()
                continue
            await self.phases.rooms.wait_for_space(self.draining.is_set)
            if self.equipment.text_encoder is not None:
                await self.equipment.text_encoder.wait_for_it(self.draining, self.link.notify)
            claimed = await self._next()
            if claimed is None:
                continue
            self.running = Running(claimed, self.link.membership.epoch)
            self.link.notify()
            try:
                with self.equipment.metrics.busy():
                    await self.phases.run(self.running, self.draining.is_set)
            finally:
                self.running = None
                self.link.notify()

    async def drain(self) -> None:
        """Wait, within `release_timeout_s`, until the rooms held here are released.

        Those that are left then are lost with the worker, and cost their jobs a stage. A worker whose controller is
        gone for longer than the worker timeout counts as dead, and waits no more.
        """
        arena = self.equipment.arena
        deadline_s = time.monotonic() + self.equipment.config.release_timeout_s
        while arena.rooms() and time.monotonic() < deadline_s and not self.link.is_cut_off:
            await arena.wait_for_space(arena.largest_gap_bytes + 1, SPACE_WAIT_S)

    def hand_back(self) -> None:
        """Stop the job in hand, so that another worker gets it."""
        if self.running is not None:
            self.running.stop = True

    async def _check_health(self) -> None:
        """Claim nothing, have the controller know it, and find out whether the jobs or the worker are to blame."""
        rank = {"rank": self.link.membership.rank}
        log.error("quarantined: %d different jobs failed here in a row", FAILURES_MAX, extra=rank)
        await self.link.reported(REPORT_TIMEOUT_S)
        if await any_set(self.draining, timeout_s=self.phases.health.pause_s):
            return
        await self.phases.check_health()
        log.warning("back from quarantine: a job of its own was done", extra=rank)
        self.link.notify()

    async def _next(self) -> Claimed | None:
        """Claim the next dispatch; None where none came for a while, or the worker is to end."""
        await any_set(self.link.registered, self.draining)
        if self.draining.is_set():
            return None
        claim = asyncio.create_task(self._claim())
        draining = asyncio.create_task(self.draining.wait())
        await asyncio.wait([claim, draining], return_when=asyncio.FIRST_COMPLETED)
        claim.cancel()
        draining.cancel()
        claimed, _ = await asyncio.gather(claim, draining, return_exceptions=True)
        if isinstance(claimed, Exception):
            raise claimed
        return claimed if isinstance(claimed, Claimed) else None

    async def _claim(self) -> Claimed | None:
        try:
            claimed = await self.source.claim(self.link.membership.rank, CLAIM_WAIT_S)
        except (*TRANSIENT, Fenced, LeaseLost):
            await asyncio.sleep(self._backoff.next_s())
            return None
        self._backoff.reset()
        return claimed
