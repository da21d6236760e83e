"""The controller's background work: each kind goes on indefinitely, however a round of it ends.

A round that fails is logged and counted, and the next comes after a pause. Only the errors in `FATAL` end the
controller: jobs that run, and clients who ask, don't depend on a round.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from triptych import telemetry
from triptych.errors import Full
from triptych.rings.recovery import TARGET_DEAD
from triptych.rings.ring import Removed
from triptych.roles import ring_name
from triptych.rpc.backoff import Backoff
from triptych.telemetry import RingDepth
from triptych.v1.job_pb2 import ATTEMPT_KIND_GIVEN_UP

from . import jobs
from .core import Core
from .evictions import Evictions
from .lifecycle import Lifecycle
from .reconciler import Reconciler
from .rings import FATAL

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often deadlines and silence are looked at: a fraction of any sensible timeout, and next to no CPU."""
STILL_S = 1.0
"""A tick that comes so late finds a controller that stood still itself, and has yet to hear what came meanwhile: it
judges nothing, and the time counts as nobody's silence."""
PAUSE_S = 0.5
"""After a round that failed: nearly as quick as the work itself, and no busy loop."""
PAUSE_S_MAX = 30.0
"""Where it fails again and again. Each round looks at the present time, so a pause loses no deadline."""

Round = Callable[[], Awaitable[object]]


async def attempt(metrics: telemetry.ControllerMetrics, name: telemetry.Task, work: Round) -> bool:
    """Do one round; whether it succeeded. Raises only the errors in `FATAL`."""
    try:
        await work()
    except FATAL:
        raise
    except Exception as error:
        metrics.background_failed(name)
        if isinstance(error, Full | OSError):
            log.error("%s failed and is tried again: %s", name, error)
        else:
            log.exception("%s failed and is tried again", name)
        return False
    return True


async def forever(
    metrics: telemetry.ControllerMetrics,
    name: telemetry.Task,
    work: Round,
    pause_s: float,
    pause_s_max: float = PAUSE_S_MAX,
) -> None:
    """Do rounds with `pause_s` between them; cancel to stop. After failures the pause doubles up to a bound."""
    backoff = Backoff(PAUSE_S, pause_s_max, spread=0.0)
    while True:
        if await attempt(metrics, name, work):
            backoff.reset()
            await asyncio.sleep(pause_s)
        else:
            await asyncio.sleep(max(pause_s, backoff.next_s()))


class Upkeep:
    """Looks at the clock."""

    def __init__(self, core: Core, lifecycle: Lifecycle, evictions: Evictions) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._evictions = evictions
        self._reconciler = Reconciler(core, evictions.evict)
        self.due_s = math.inf
        """When the next tick is to come, by the loop's clock."""
        self._stood_still_s = 0.0
        """When the controller was last found to have stood still, by the loop's clock."""
        self.depths: list[RingDepth] = []
        """As of the last tick. The rings themselves belong to this thread, and metrics are read by another."""

    async def run(self) -> None:
        """Tick, expire and publish indefinitely; cancel to stop. Raises what is in `FATAL`."""
        metrics = self._core.metrics
        async with asyncio.TaskGroup() as group:
            group.create_task(forever(metrics, "tick", self.tick_unless_late, TICK_S, TICK_S))
            group.create_task(forever(metrics, "expire", self._lifecycle.expire, TICK_S))
            group.create_task(forever(metrics, "publish", self._publish, 0.0, TICK_S))

    async def tick_unless_late(self) -> None:
        """`tick`, but for the first time after the controller stood still: see `STILL_S`."""
        now_s = asyncio.get_running_loop().time()
        late_s = now_s - self.due_s
        if late_s > STILL_S:
            log.warning("the controller stood still for %.1f s; that is no silence of its workers", late_s)
            self._core.fleet.excuse(late_s)
            self._stood_still_s = now_s
            self.due_s = math.inf  # the next tick looks, however late it is
            return
        await self.tick()
        self.due_s = asyncio.get_running_loop().time() + TICK_S

    async def _publish(self) -> None:
        await self._core.dispatcher.work.wait()
        self._core.dispatcher.work.clear()
        await self._core.dispatcher.publish_waiting()

    async def tick(self) -> None:
        """Look at the clock once. A part that fails doesn't keep the others from being done."""
        for part in (
            self._evict_silent,
            self._evict_stalled,
            self._take_from_nobody,
            self._look_at_rings,
            self._evictions.settle,
            self._core.quarantine.settle,
            self._settle_removed,
            lambda: self._reconciler.look(asyncio.get_running_loop().time()),
        ):
            await attempt(self._core.metrics, "tick", part)
        self._core.dispatcher.work.set()  # a slot may have become free since

    async def _evict_silent(self) -> None:
        timeout_s = self._core.config.worker_timeout_s
        for rank in self._core.fleet.silent(timeout_s):
            await self._evictions.evict(rank, f"rank {rank} was silent for {timeout_s:g} s")

    async def _evict_stalled(self) -> None:
        ledger = self._core.ledger
        now_s = asyncio.get_running_loop().time()
        timeout_s = self._core.config.stall_timeout_s
        for job_id, progress in list(ledger.progress.items()):
            entry = ledger.active.get(job_id)
            if entry is None or not jobs.is_running(entry):
                continue
            # While the disk was full, or the controller stood still, workers that are done could not say so.
            if now_s - max(progress.seen_s, ledger.journal.full_s, self._stood_still_s) > timeout_s:
                await self._evictions.evict(entry.lease.rank, f"no progress for {timeout_s:g} s")

    async def _take_from_nobody(self) -> None:
        """Send back what a rank runs, by the journal, that is neither a worker nor one whose end is being settled."""
        ledger = self._core.ledger
        for rank in ledger.ranks() - self._core.fleet.members.keys() - self._evictions.ranks():
            for job_id in ledger.concerning(rank):
                entry = ledger.active.get(job_id)
                if entry is not None and jobs.is_running(entry) and entry.lease.rank == rank:
                    await self._lifecycle.worker_lost(entry, f"rank {rank} is no more", ATTEMPT_KIND_GIVEN_UP)

    async def _look_at_rings(self) -> None:
        rings = self._core.rings.values()
        for ring in rings:
            if ring.driver.is_shared:
                ring.hint()  # hints of workers may be lost, and it shows whether the card still works
        stats = [(ring.name, ring.stats()) for ring in rings]
        self.depths = [RingDepth(ring_name(name), s.ready_count, s.leased_count) for name, s in stats]

    async def _settle_removed(self) -> None:
        """Decide what becomes of the jobs whose entries were taken out of a ring."""
        removed = self._core.removed
        removed += self._core.dispatcher.withdraw()
        while removed:
            one = removed[-1]
            await self._settle_one(one)
            removed.remove(one)  # only now: the journal may have refused it

    async def _settle_one(self, removed: Removed) -> None:
        """The journal alone counts attempts. A job that waits is published again."""
        entry = self._core.ledger.active.get(removed.dispatch.job_id)
        if entry is None or entry.job.generation != removed.dispatch.generation:
            return
        if not jobs.is_running(entry):
            self._core.dispatcher.enqueue(entry)
            return
        # It was handed back, and nobody has claimed it since.
        if removed.reason != TARGET_DEAD and jobs.dispatch_key(entry.lease) == jobs.dispatch_key(removed.lease):
            await self._lifecycle.worker_lost(entry, "handed back", ATTEMPT_KIND_GIVEN_UP)
