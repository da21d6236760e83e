"""What the controller does unasked: each kind of work goes on for ever, whatever becomes of one round of it.

A round that fails is logged and counted, and the next comes after a pause. Nothing here ends the controller but what is
in `FATAL`: jobs that others run, and clients who ask, don't depend on it.

| task | what a failed round leaves undone until the next |
| --- | --- |
| tick | noticing silence and stalls; what follows from deaths; each part by itself |
| expire | ending jobs whose deadline has passed |
| publish | moving jobs from the queues into the rings |
| prune | removing what is over |
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
"""Where it fails again and again. Times that matter are looked at each time anew, so a pause loses none of them."""

FATAL = (RingUnreachable, RingMismatch, RingRefused)
"""What another round can't mend, but a new start does: the controller's own rings, on a card that fails."""

Round = Callable[[], Awaitable[object]]


class Background:
    """Runs rounds of work, and survives them."""

    def __init__(self, metrics: telemetry.Metrics) -> None:
        self._metrics = metrics

    async def attempt(self, name: str, work: Round) -> bool:
        """Do one round; whether it succeeded. A full disk or store is said in a line, everything else with its place.

        Raises what is in `FATAL`.
        """
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
