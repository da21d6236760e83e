"""Finished jobs and their results are kept for a time and up to a number, then removed.

Results go first, then the journal's rows: a crash between the two leaves a job that the next pass removes, and never
a file that nobody knows of.
"""

from __future__ import annotations

import functools
import logging
import time

from services.controller import jobs
from services.controller.journal import Journal
from services.controller.threads import FairThreads
from triptych import results
from triptych.v1.journal_pb2 import JournalEntry

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
"""Between two passes: what is kept for days needs no better clock."""
BATCH_JOBS = 256
"""Looked at and removed at once: bounds how long others wait for the journal."""
SECONDS_A_DAY = 86_400


class Pruner:
    """Removes what is over and no longer wanted. A limit of 0 is none."""

    def __init__(self, journal: Journal, result_url: str, *, keep_days: float, keep_jobs: int) -> None:
        self._journal, self._result_url = journal, result_url
        self._thread = FairThreads("pruning", 1, 1)
        self._keep_s, self._keep_jobs = keep_days * SECONDS_A_DAY, keep_jobs

    async def once(self) -> None:
        """A pass. Raises Full, and whatever a result store does."""
        if count := await self.prune(time.time()):
            log.info("removed %d finished jobs and their results", count)

    async def prune(self, now_s: float) -> int:
        """Remove the finished jobs beyond the limits, oldest first; how many. Raises Full and OSError."""
        over = sorted(jobs.OVER)
        counts = await self._journal.counts()
        excess = sum(counts.get(state, 0) for state in over) - self._keep_jobs if self._keep_jobs else 0
        removed, position = 0, 0
        while page := await self._journal.finished(over, position, BATCH_JOBS):
            position = page[-1][0]
            doomed = [
                entry
                for number, (_sequence, entry) in enumerate(page, removed)
                if number < excess or self._is_old(entry, now_s)
            ]
            if not doomed:
                break  # jobs end nearly in the order in which they came: later pages have none either
            for entry in doomed:
                await self._thread.run("", functools.partial(results.remove, self._result_url, entry.job))
            await self._journal.delete([entry.job.job_id for entry in doomed])
            removed += len(doomed)
        return removed

    def _is_old(self, entry: JournalEntry, now_s: float) -> bool:
        return bool(self._keep_s) and entry.job.end_time.ToNanoseconds() / 1e9 < now_s - self._keep_s
