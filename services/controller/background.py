"""The controller's background work: each kind goes on indefinitely, however a round of it ends.

A round that fails is logged and counted, and the next comes after a pause. Only the errors in `FATAL` end the
controller: jobs that run, and clients who ask, don't depend on a round.

| task | what a failed round leaves undone until the next |
| --- | --- |
| tick | noticing silence and stalls; what follows from evictions; each part by itself |
| expire | ending jobs whose deadline has passed |
| publish | moving jobs from the queues into the rings |
| prune | removing finished jobs beyond their limits |
| sweep | removing files that attempts have left behind |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from triptych import telemetry
from triptych.errors import Full, RingMismatch, RingRefused, RingUnreachable

log = logging.getLogger(__name__)

PAUSE_S = 0.5
"""After a round that failed: nearly as quick as the work itself, and no busy loop."""
PAUSE_S_MAX = 30.0
"""Where it fails again and again. Each round looks at the present time, so a pause loses no deadline."""

FATAL = (RingUnreachable, RingMismatch, RingRefused)
"""The controller's own rings, on a card that fails: a new start mends that, another round doesn't."""

Round = Callable[[], Awaitable[object]]


class Background:
    """Runs rounds of work, and survives them."""

    def __init__(self, metrics: telemetry.Metrics) -> None:
        self._metrics = metrics

    async def attempt(self, name: str, work: Round) -> bool:
        """Do one round; whether it succeeded. Raises only the errors in `FATAL`."""
        try:
            await work()
        except FATAL:
            raise
        except Exception as error:
            self._metrics.background_failed(name)
            if isinstance(error, Full | OSError):
                log.error("%s failed and is tried again: %s", name, error)
            else:
                log.exception("%s failed and is tried again", name)
            return False
        return True

    async def forever(self, name: str, work: Round, pause_s: float, pause_s_max: float = PAUSE_S_MAX) -> None:
        """Do rounds with `pause_s` between them; cancel to stop. After failures the pause doubles up to a bound."""
        failures = 0
        while True:
            failures = 0 if await self.attempt(name, work) else failures + 1
            grown_s = PAUSE_S * 2 ** min(failures - 1, 16) if failures else 0.0
            await asyncio.sleep(max(pause_s, min(grown_s, pause_s_max)))
