"""Does what the plan says, when its time comes."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.disks import Disks
from tests.chaos.fleet import Fleet
from tests.chaos.network import Network
from tests.chaos.plan import Fault, Kind

FLIPPED_BYTES = 128
FLIP_PAUSE_S = 0.02
FLIPPED_SPAN_BYTES = 2**20
"""Rooms lie at the start of an arena (first fit), so that is where a flipped byte hits one."""


class Injector:
    """Injects faults. `network` and `disks` are None where this machine can't have them; what needs them is skipped."""

    def __init__(self, fleet: Fleet, network: Network | None, disks: Disks | None, reason: str) -> None:
        self._fleet, self._network, self._disks, self._reason = fleet, network, disks, reason
        self.counts: Counter[Kind] = Counter()
        self.skipped: dict[str, Counter[Kind]] = defaultdict(Counter)
        """Faults left out, by reason."""
        self.log: list[str] = []

    async def run(self, faults: Sequence[Fault], elapsed_s: Callable[[], float]) -> None:
        """Inject all of them, each at its time; returns when the last is over and its target is back."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, fault.at_s - elapsed_s()))
                group.create_task(self._inject(fault, elapsed_s))

    async def _inject(self, fault: Fault, elapsed_s: Callable[[], float]) -> None:
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
        if kind in (Kind.PAUSE_SHORT, Kind.PAUSE_LONG, Kind.PAUSE_CONTROLLER):
            return self._pause
        if kind in (Kind.PARTITION_SHORT, Kind.PARTITION_LONG):
            return self._partition
        if kind in (Kind.DELAY, Kind.LOSS):
            return self._impair
        return self._corrupt if kind is Kind.CORRUPT else self._fill

    async def _kill(self, fault: Fault) -> str:
        await self._fleet.kill(fault.target)
        await self._fleet.start(fault.target)
        await self._fleet.wait_ready(fault.target)
        return ""

    async def _pause(self, fault: Fault) -> str:
        self._fleet.pause(fault.target)
        await asyncio.sleep(fault.duration_s)
        self._fleet.resume(fault.target)
        return ""

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
