"""Waiting claims, one for each rank, for the rings of both sides.

A wait ends with an entry, at its deadline, or when the same rank claims again. `wake` wakes it. Where other machines
change the ring's memory (`polls`), it also looks without being woken, at first soon and then less and less often, so
that a lost hint costs at most `POLL_MAX_S`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from triptych.rings.ring import Claimed, check_wait

POLL_FIRST_S = 0.001
"""First pause between two looks, for hand-offs that follow one another. A look takes microseconds."""
POLL_MAX_S = 0.05
"""Longest pause: twenty small reads a second are nothing to a network card, and a fraction of a percent of a core."""


class Waiters:
    """All waiting claims of a ring. Belongs to one event loop's thread."""

    def __init__(self, *, polls: bool) -> None:
        self._pause_first_s = POLL_FIRST_S if polls else math.inf
        self._pause_max_s = POLL_MAX_S if polls else math.inf
        self._claims: dict[int, object] = {}
        self._sleepers: dict[int, asyncio.Future[None]] = {}

    @property
    def count(self) -> int:
        """Claims that wait now."""
        return len(self._sleepers)

    async def claim(self, rank: int, wait_s: float, take: Callable[[int], Awaitable[Claimed | None]]) -> Claimed | None:
        """Call `take(rank)` until it returns an entry or `wait_s` is over. None if a newer claim took over.

        Raises InvalidRequest for a wait out of bounds, and the errors of `take`. Nothing is awaited after `take`.
        """
        check_wait(wait_s)
        turn = self._claims[rank] = object()
        self.wake(rank)
        deadline_s = time.monotonic() + wait_s
        pause_s = self._pause_first_s
        try:
            while self._claims.get(rank) is turn:
                claimed = await take(rank)
                remaining_s = deadline_s - time.monotonic()
                if claimed is not None or remaining_s <= 0:
                    return claimed
                was_woken = await self._sleep(rank, min(remaining_s, pause_s))
                pause_s = self._pause_first_s if was_woken else min(2 * pause_s, self._pause_max_s)
            return None
        finally:
            if self._claims.get(rank) is turn:
                del self._claims[rank]

    def wake(self, rank: int | None = None) -> None:
        """Have the waiting claim of `rank` look again, or all claims in the order in which they began to wait."""
        for sleeping in [rank] if rank is not None else list(self._sleepers):
            sleeper = self._sleepers.pop(sleeping, None)
            if sleeper is not None and not sleeper.done():
                sleeper.set_result(None)

    async def _sleep(self, rank: int, timeout_s: float) -> bool:
        """Wait until woken or until the time is over. Returns whether it was woken."""
        sleeper = self._sleepers[rank] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((sleeper,), timeout=timeout_s)
            return sleeper.done()
        finally:
            if self._sleepers.get(rank) is sleeper:
                del self._sleepers[rank]
