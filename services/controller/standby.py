"""Several controllers over one journal: which of them is active, and what the others do meanwhile.

The active one holds the journal's lease, a value that it changes again and again. Another takes over when it has seen
the same value for `lease_s` by its own clock. No two hosts' clocks are compared: the active one counts its time from
before it wrote the value, the others count theirs from after they read it, so its time is over first.

    free        the value is empty                       whoever sees it takes over
    held        it changes                               the holder answers calls, the others refuse them
    left        it stayed the same for `lease_s`         whoever sees it takes over
    taken       the epoch is another than the holder's   the holder's transactions end with TakenOver, and so does it

Taking over counts the journal's epoch up, in a transaction that excludes all others. Each transaction of a controller
looks at the epoch first, so an old one that was stopped or cut off neither writes nor reads. What it has in memory is
old, too: an answer that is ready when its time is over is refused instead (`Lease.check`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from triptych import rpc
from triptych.config import ControllerConfig
from triptych.errors import JournalFull, TakenOver, TriptychError, Unavailable
from triptych.security import auth

from .. import process
from .journal import Journal
from .journal_meta import LEASE_KEY, Standing

log = logging.getLogger(__name__)

RENEWALS = 3
"""In the time of a lease: two may fail."""
LOOKS = 12
"""Of a standby, in the time of a lease. They add to the time until it takes over."""
_SERVICES = ("GenerationService", "FileService", "FleetService", "RingService")
NAMES = (rpc.WHOLE, *(f"triptych.v1.{name}" for name in _SERVICES))
"""What a standby says NOT_SERVING of, by which proxies, clients and workers find the active controller."""


def now_s() -> float:
    """Seconds by a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """This controller's. Without a time (`lease_s` 0) there is no other controller, and it lasts."""

    def __init__(self, journal: Journal, lease_s: float) -> None:
        self._journal = journal
        self._lease_s = lease_s
        self._holder = f"{socket.gethostname()}/{os.getpid()}"
        self._number = 0
        self._until_s = float("-inf") if lease_s else float("inf")

    async def wait(self) -> int:
        """Wait until it is this controller's; its epoch. Raises InvalidRequest for a journal with damage.

        The journal is looked at while standing by: it may take longer than a lease.
        """
        if not self._lease_s:
            return await self._journal.next_epoch()
        seen: Standing | None = None
        seen_s = now_s()
        is_checked = False
        while True:
            with contextlib.suppress(JournalFull):  # it is busy or away; then nothing is known
                if not is_checked:
                    await self._journal.check()
                    is_checked = True
                found = await self._journal.standing()
                if seen is None or found.epoch != seen.epoch:
                    log.info("standing by: epoch %d is of %s", found.epoch, found.lease.decode() or "nobody any more")
                if found != seen:
                    seen, seen_s = found, now_s()
                if not found.lease or now_s() - seen_s >= self._lease_s:
                    epoch = await self._take_over(found)
                    if epoch is not None:
                        log.warning("took over in epoch %d", epoch)
                        return epoch
            await asyncio.sleep(self._lease_s / LOOKS)

    async def _take_over(self, seen: Standing) -> int | None:
        """See `Journal.take_over`. Cancelled, it gives back what the journal's thread takes all the same."""
        until_s = now_s() + self._lease_s
        taking = asyncio.create_task(self._journal.take_over(seen, self._value()))
        try:
            epoch = await asyncio.shield(taking)
        except asyncio.CancelledError:
            with contextlib.suppress(TriptychError, TimeoutError):  # then it runs out
                async with asyncio.timeout(max(until_s - now_s(), 0.0)):
                    if await taking is not None:
                        self._until_s = until_s
                        await self.release()
            raise
        if epoch is not None:
            self._until_s = until_s
        return epoch

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """It is renewed in the block, and released after it. Raises as `keep`, which ends the block."""
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self.keep())
                yield
                keeping.cancel()
        finally:
            await self.release()

    async def keep(self) -> None:
        """Renew it indefinitely; cancel to stop. Raises TakenOver when that failed for too long, JournalDamaged."""
        if not self._lease_s:
            await asyncio.get_running_loop().create_future()
        while True:
            start_s = now_s()
            try:
                async with asyncio.timeout(max(self._until_s - start_s, 0.0)):
                    await self._journal.set_meta(LEASE_KEY, self._value())
            except (JournalFull, TimeoutError) as error:
                log.warning("the lease can't be renewed now: %s", error or "no answer")
                if now_s() >= self._until_s:
                    raise TakenOver(f"the lease could not be renewed for {self._lease_s:g} s") from error
                pause_s = self._lease_s / LOOKS
            else:
                self._until_s = start_s + self._lease_s
                pause_s = self._lease_s / RENEWALS
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        """Let another take over immediately; it tries until the lease's end. Nothing may be answered after it."""
        left_s = self._until_s - now_s()
        if self._lease_s and left_s > 0:
            self._until_s = float("-inf")
            with contextlib.suppress(TriptychError, TimeoutError):  # then it runs out
                async with asyncio.timeout(left_s):
                    await self._journal.set_meta(LEASE_KEY, b"")

    def check(self) -> None:
        """Raise TakenOver when its time is over: another may be active by now."""
        if now_s() >= self._until_s:
            raise TakenOver("this controller's lease is over; ask the one that is active now")

    def _value(self) -> bytes:
        self._number += 1
        return f"{self._holder} {self._number}".encode()


async def stand_by(
    config: ControllerConfig, lease: Lease, security: auth.Security, stop: asyncio.Event
) -> tuple[int, ControllerConfig] | None:
    """Wait for the lease, and refuse calls meanwhile; the epoch, and the settings with the addresses that are kept.

    None when `stop` is set first: then the lease is nobody's. Raises as `Lease.wait`.
    """
    if not config.lease_s:
        return await lease.wait(), config
    server = await rpc.start_server(
        config.address, [], security=security, client_address=config.client_address, gate=_refuse
    )
    waiting = asyncio.create_task(lease.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await server.set_serving(False, NAMES)
        process.announce(server.address, server.client_address)
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return None
        return waiting.result(), replace(config, address=server.address, client_address=server.client_address)
    finally:
        for task in (waiting, stopping):
            task.cancel()
        await asyncio.wait([waiting, stopping])  # within a lease: it may have just been taken
        await server.stop(0)


def _refuse() -> None:
    raise Unavailable("this controller stands by; ask the active one")
