"""How large a job may be before memory runs out here: pure bookkeeping of the sizes that were done and that weren't.

    a job of this size ...   the bound, where there is one
    is done                  goes, if the job isn't smaller: whatever was in the way then is gone
    runs out of memory       falls to it, if it is smaller, and counts once more; what was done of this size or a larger
                             one no longer counts

So `done_max` is below the bound always. The newest of two that contradict each other holds.
"""

from __future__ import annotations

FAILURES_TOLD = 2
"""How often memory runs out until the controller is told: one time may be another process's fault."""
BOUND_S = 600.0
"""How long a bound holds after memory last ran out. Other processes may have left the device since; if they haven't, it
costs one attempt to find that out."""


class Capacity:
    """Of one worker. Sizes are those of `JournalEntry.pixels`; 0 is an unknown one and changes nothing.

    Times are of one clock. All methods belong to the worker's event loop.
    """

    def __init__(self) -> None:
        self.done_max = 0.0
        """The largest that was done; 0 before the first."""
        self._failed_min = 0.0
        self._failures = 0
        self._failed_s = 0.0

    def done(self, pixels: float) -> None:
        """A job of this size was done here."""
        self.done_max = max(self.done_max, pixels)
        if self.done_max >= self._failed_min:
            self._failed_min, self._failures = 0.0, 0

    def ran_out(self, pixels: float, now_s: float) -> None:
        """Memory ran out in a job of this size."""
        if not pixels:
            return
        if self.done_max >= pixels:
            self.done_max = 0.0
        self._failed_min = min(self._failed_min or pixels, pixels)
        self._failures += 1
        self._failed_s = now_s

    def failed_min(self, now_s: float) -> float:
        """The size from which jobs run out of memory here again and again; 0 for no bound."""
        is_told = self._failures >= FAILURES_TOLD and now_s - self._failed_s < BOUND_S
        return self._failed_min if is_told else 0.0
