"""Workers that fail one job after another: their failures don't count against the jobs.

A worker finds out by itself (`services.worker.health`) and says so with its heartbeat. At the next tick `settle` writes
down what follows for the jobs, and takes it back when the worker turns out to be well after all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import defaultdict, deque

from triptych.errors import LeaseLost
from triptych.v1.worker_pb2 import WORKER_STATE_DRAINING, WORKER_STATE_QUARANTINED, WorkerState

from . import attempts
from .ledger import Ledger

log = logging.getLogger(__name__)

JOBS_MAX = 64
"""Jobs kept of one worker's failures in a row; it looks at itself after three different ones."""


class Quarantine:
    """Of one controller. All methods belong to its event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._failed: defaultdict[int, deque[str]] = defaultdict(lambda: deque(maxlen=JOBS_MAX))
        """By rank: the jobs that failed there since its last success, in order."""
        self._sick: set[int] = set()
        self._verdicts: list[tuple[int, bool, list[str]]] = []
        """Ranks, whether they are sick, and the jobs that they failed, until the journal has it."""

    def failed(self, rank: int, job_id: str) -> None:
        if job_id not in self._failed[rank]:
            self._failed[rank].append(job_id)

    def succeeded(self, rank: int) -> None:
        """A worker finished a phase."""
        self._failed.pop(rank, None)

    def saw(self, rank: int, state: WorkerState.ValueType, reason: str) -> None:
        """A worker says whether it is in quarantine. One that leaves says nothing new of its health."""
        is_sick = state == WORKER_STATE_QUARANTINED
        if is_sick == (rank in self._sick) or state == WORKER_STATE_DRAINING:
            return
        if is_sick:
            self._sick.add(rank)
            log.warning("worker is quarantined: %s", reason, extra={"rank": rank})
        else:
            self._sick.discard(rank)
            log.info("worker is back from quarantine", extra={"rank": rank})
        self._verdicts.append((rank, is_sick, list(self._failed[rank])))
        if not is_sick:
            self._failed.pop(rank, None)

    def gone(self, rank: int, is_broken: bool) -> None:
        if is_broken and rank not in self._sick:
            self._verdicts.append((rank, True, list(self._failed[rank])))
        self._sick.discard(rank)
        self._failed.pop(rank, None)

    async def settle(self) -> None:
        """Write down what follows. Raises JournalFull with the rest left for the next time."""
        while self._verdicts:
            rank, is_sick, job_ids = self._verdicts[0]
            absolve = functools.partial(attempts.absolve, rank=rank, is_sick=is_sick)
            for job_id in job_ids:
                with contextlib.suppress(LeaseLost):  # the job is over
                    await self._ledger.apply(job_id, absolve)
            self._verdicts.pop(0)
