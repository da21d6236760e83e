"""Does what the plan says, when its time comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.disks import Disks
from tests.chaos.load import POLICY, Load
from tests.chaos.network import Network
from tests.chaos.plan import Fault, Kind
from tests.fleet.watched import WatchedFleet
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED
from triptych_client import AsyncClient
from triptych_client.job_states import is_over

FLIPPED_BYTES = 128
FLIP_PAUSE_S = 0.02
FLIPPED_SPAN_BYTES = 2**20
"""Rooms lie at the start of an arena (first fit), so that is where a flipped byte hits one."""
LOOKS_MAX = 200
LOOK_PAUSE_S = 0.05
"""Ten seconds in all: a decoder that has no job by then gets none soon, and who is dead is known to be."""


class Injector:
    """Injects faults.

    `other_model` are flags of workers that serve another model. `network` and `disks` are None where this machine can't
    have them; what needs them is skipped.
    """

    def __init__(
        self,
        fleet: WatchedFleet,
        load: Load,
        other_model: Sequence[str],
        network: Network | None,
        disks: Disks | None,
        reason: str,
    ) -> None:
        self._fleet, self._load, self._other_model = fleet, load, other_model
        self._network, self._disks, self._reason = network, disks, reason
        self.counts: Counter[Kind] = Counter()
        self.skipped: dict[str, Counter[Kind]] = defaultdict(Counter)
        """Faults left out, by reason."""
        self.log: list[str] = []
        self._free: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By target: where a machine is so slow that a fault isn't over when the next is due, that waits for it."""

    async def run(self, faults: Sequence[Fault], elapsed_s: Callable[[], float]) -> None:
        """Inject all of them, each at its time; returns when the last is over and its target is back."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, fault.at_s - elapsed_s()))
                group.create_task(self._inject(fault, elapsed_s))

    async def _inject(self, fault: Fault, elapsed_s: Callable[[], float]) -> None:
        is_of_all = fault.kind is Kind.MODEL_SWAP
        targets = [*self._fleet.controllers, *self._fleet.workers] if is_of_all else [fault.target]
        async with contextlib.AsyncExitStack() as stack:
            for target in sorted(targets):
                await stack.enter_async_context(self._free[target])
            started_s = elapsed_s()
            reason = await self._how(fault.kind)(fault)
        if reason:
            self.skipped[reason][fault.kind] += 1
        else:
            self.counts[fault.kind] += 1
        self.log.append(f"{started_s:7.2f} … {elapsed_s():7.2f} s  {fault}{f'  left out: {reason}' if reason else ''}")

    def _how(self, kind: Kind) -> Callable[[Fault], Awaitable[str]]:
        if kind in (Kind.KILL, Kind.KILL_CONTROLLER):
            return self._kill
        if kind is Kind.TAKEOVER:
            return self._take_over
        if kind in (Kind.PAUSE_SHORT, Kind.PAUSE_LONG, Kind.PAUSE_CONTROLLER):
            return self._pause
        if kind in (Kind.PARTITION_SHORT, Kind.PARTITION_LONG):
            return self._partition
        if kind in (Kind.DELAY, Kind.LOSS):
            return self._impair
        return {
            Kind.CORRUPT: self._corrupt,
            Kind.LEAVE: self._leave,
            Kind.SICK: self._sicken,
            Kind.LATE_DECODER: self._delay_decoder,
            Kind.MODEL_SWAP: self._swap,
        }.get(kind, self._fill)

    async def _kill(self, fault: Fault) -> str:
        name = await self._fleet.active(fault.target)
        await self._fleet.end(name)
        await self._fleet.begin([name])
        return ""

    async def _take_over(self, fault: Fault) -> str:
        name = await self._fleet.active(fault.target)
        await self._stop_still(name, fault.duration_s)
        return "" if await self._fleet.active(fault.target) != name else "nobody took over"

    async def _leave(self, fault: Fault) -> str:
        await self._fleet.ready(fault.target)  # one that is told to end while Python starts has no drain
        await self._fleet.leave(fault.target)
        await self._fleet.begin([fault.target])
        return ""

    async def _sicken(self, fault: Fault) -> str:
        """One that can write no file any more fails what it has made; one that can open none fails at once."""
        kind = random.Random(fault.at_s).choice((resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE))
        await self._fleet.ready(fault.target)  # one that can open no file while it starts is no sick worker
        pid, before = self._fleet.pid(fault.target), self._fleet.limit(fault.target, kind, 0)
        await asyncio.sleep(fault.duration_s)
        if self._fleet.pid(fault.target) == pid:
            self._fleet.limit(fault.target, kind, before)
        await self._fleet.ready(fault.target)  # it may have ended meanwhile, and been started again
        return ""

    async def _delay_decoder(self, fault: Fault) -> str:
        """Stopped with a job in hand, for so long that another decoder has done it when it wakes."""
        pid = self._fleet.pid(fault.target)
        async with AsyncClient(self._fleet.endpoint, POLICY) as client:
            for _look in range(LOOKS_MAX):
                if any(
                    worker.info.process_id == pid and worker.status.progress.job_id
                    for worker in (await client.get_fleet()).workers
                ):
                    break
                await asyncio.sleep(LOOK_PAUSE_S)
            else:
                return "the decoder had no job"
        return await self._pause(fault)

    async def _swap(self, fault: Fault) -> str:
        """No client sends anything meanwhile: what is accepted then is the other model's."""
        async with self._load.closed():
            for name in self._fleet.workers:
                await self._fleet.end(name)
            before = await self._load.list_all()  # what is over now was done by the first model's workers
            await self._replace_workers(self._other_model)
            await asyncio.sleep(fault.duration_s)
            after = {job.job_id: job for job in await self._load.list_all()}
            await self._replace_workers(())
        waiting = [job for job in before if not is_over(job)]
        touched = [job.job_id for job in waiting if after[job.job_id].state == JOB_STATE_SUCCEEDED]
        self._fleet.complaints += [f"{job_id} was done by another model's workers" for job_id in touched]
        return "" if waiting else "no job waited"

    async def _replace_workers(self, flags: Sequence[str]) -> None:
        """Kill all workers, wait until they are known to be dead, and start as many with these flags besides."""
        names = self._fleet.workers
        for name in names:
            await self._fleet.end(name)
        async with AsyncClient(self._fleet.endpoint, POLICY) as client:
            for _look in range(LOOKS_MAX):
                if not (await client.get_fleet()).workers:
                    break
                await asyncio.sleep(LOOK_PAUSE_S)
        self._fleet.extra_flags = flags
        await self._fleet.begin(names)

    async def _pause(self, fault: Fault) -> str:
        await self._stop_still(await self._fleet.active(fault.target), fault.duration_s)
        return ""

    async def _stop_still(self, name: str, duration_s: float) -> None:
        self._fleet.pause(name)
        await asyncio.sleep(duration_s)
        self._fleet.resume(name)

    async def _partition(self, fault: Fault) -> str:
        if self._network is None:
            return self._reason
        await self._network.partition(fault.target)
        await asyncio.sleep(fault.duration_s)
        await self._network.heal(fault.target)
        return ""

    async def _impair(self, fault: Fault) -> str:
        if self._network is None:
            return self._reason
        await self._network.impair(fault.target, fault.kind)
        await asyncio.sleep(fault.duration_s)
        await self._network.restore(fault.target)
        return ""

    async def _corrupt(self, fault: Fault) -> str:
        arena = self._fleet.arena(fault.target)
        if arena is None:
            return "the worker had no arena yet"
        rng = random.Random(fault.at_s)
        for _round in range(round(fault.duration_s / FLIP_PAUSE_S)):
            if not arena.exists():
                break
            flip(arena, rng)
            await asyncio.sleep(FLIP_PAUSE_S)
        return ""

    async def _fill(self, fault: Fault) -> str:
        if self._disks is None:
            return self._reason
        await asyncio.to_thread(self._disks.fill, fault.target)
        full = self._disks.is_full(fault.target)
        await asyncio.sleep(fault.duration_s)
        self._disks.free(fault.target)
        return "" if full else "the disk didn't fill"


def flip(path: Path, rng: random.Random) -> None:
    """Flip bytes all over the start of a file."""
    file = os.open(path, os.O_RDWR)
    try:
        span = min(FLIPPED_SPAN_BYTES, os.fstat(file).st_size)
        for start in range(0, span, span // FLIPPED_BYTES):
            offset = start + rng.randrange(span // FLIPPED_BYTES)
            (byte,) = os.pread(file, 1, offset)
            os.pwrite(file, bytes([byte ^ 0xFF]), offset)
    finally:
        os.close(file)
