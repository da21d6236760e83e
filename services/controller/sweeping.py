"""Files that attempts have left behind are removed: those that died between storing and completing, or came too late.

A worker removes the files of a completion that is refused. Those of a dead worker are swept when the job is over; again
later, in case the worker was only stopped and woke up; and at the latest with the job's record, by pruning.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque

from triptych.media import results
from triptych.v1.dispatch_pb2 import ROLE_DECODER
from triptych.v1.job_pb2 import Job
from triptych.v1.journal_pb2 import JournalEntry

from . import jobs
from .threads import FairThreads

log = logging.getLogger(__name__)

AGAIN_S = 600.0
"""When a job's folder is swept for the second time: a process that was stopped for longer is not expected back."""
SWEEPS_WAITING_MAX = 4096
"""Jobs that wait to be swept. More are left to pruning."""
SWEEP_PAUSE_S = 5.0
"""Between two looks."""


class Sweeper:
    """Sweeps below one result URL. Everything but the removing itself runs on the event loop."""

    def __init__(self, result_url: str) -> None:
        self._result_url = result_url
        self._thread = FairThreads("sweeping", 1, 1)
        self._waiting: deque[tuple[float, Job]] = deque(maxlen=SWEEPS_WAITING_MAX)

    def ended(self, entry: JournalEntry) -> None:
        """A job is over. Only those that more than one decoder may have stored something for are looked at."""
        job = entry.job
        is_plain = jobs.is_over(entry) and job.artifacts and not any(a.role == ROLE_DECODER for a in job.attempts)
        if job.decoder_rank and not is_plain:
            now_s = asyncio.get_running_loop().time()
            self._waiting.append((now_s, job))
            self._waiting.append((now_s + AGAIN_S, job))

    async def once(self) -> None:
        """Sweep the folders that are due. A file that the store keeps now is left to the second time, or to pruning."""
        now_s = asyncio.get_running_loop().time()
        for _ in range(len(self._waiting)):
            due_s, job = self._waiting.popleft()
            if due_s > now_s:
                self._waiting.append((due_s, job))
                continue
            try:
                await self._thread.run("", functools.partial(results.sweep, self._result_url, job))
            except Exception as error:  # noqa: BLE001  (stores raise anything; what is left goes with the job's record)
                log.warning("what attempts left behind can't be removed now: %s", error, extra={"job_id": job.job_id})
