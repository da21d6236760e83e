"""Finished jobs and their results are kept for a time, and for each client up to a number and up to so many bytes.

Each client has its own bounds: what one makes never shortens what is kept for another. Results go first, then the
journal's rows: a crash between the two leaves a job that the next pass removes, and never a file that nobody knows of.

Age is counted by a clock of the pruner's own, kept in the journal. It follows the machine's, but forward only
`CLOCK_RATE` times as fast as time passes while the controller runs: where the machine's clock jumps a month ahead,
nothing goes immediately, and a person who sets it right in the next days has lost nothing or little.

Files that attempts have left behind are swept: of those that died between storing and completing, or came too late. A
worker removes the files of a completion that is refused. Those of a dead worker are swept when the job is over; again
later, in case the worker was only stopped and woke up; and at the latest with the job's record, by pruning.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from typing import NamedTuple

from triptych.media import results
from triptych.v1.dispatch_pb2 import ROLE_DECODER
from triptych.v1.job_pb2 import Job
from triptych.v1.journal_pb2 import JournalEntry

from . import jobs
from .journal import Journal, marks
from .journal_database import Database
from .shares import FairThreads

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
"""Between two passes: what is kept for days needs no better clock."""
BATCH_JOBS = 256
"""Looked at and removed at a time: bounds how long others wait for the journal."""
SECONDS_A_DAY = 86_400
CLOCK_KEY = "pruning_clock"
CLOCK_RATE = 8.0
"""A month's jump takes four days, and a controller that runs three hours a day keeps up."""
CLOCK_LAG_S = 3600.0
"""A difference to the machine's clock that is worth a line in the log."""
STUCK_MAX = 64
"""Jobs whose files can't be removed after which a pass ends: each may take a store's whole timeout."""
AGAIN_S = 600.0
"""When a job's folder is swept for the second time: a process that was stopped for longer is not expected back."""
SWEEPS_WAITING_MAX = 4096
"""Jobs that wait to be swept. More are left to pruning."""
SWEEP_PAUSE_S = 5.0
"""Between two looks."""


class Keep(NamedTuple):
    """How many finished jobs are kept. A limit of 0 is none."""

    days: float = 0.0
    jobs: int = 0
    """Of each client."""
    size_bytes: int = 0
    """Results, and dead letters' requests, of each client. The newest job stays, however large."""


class Pruner:
    """Removes finished jobs beyond the limits."""

    def __init__(self, journal: Journal, result_url: str, keep: Keep) -> None:
        self._journal = journal
        self._result_url = result_url
        self._keep = keep
        self._thread = FairThreads("pruning", 1, 1)
        self._passed_s = time.monotonic()
        """When the clock was last moved, by the clock that can't be set."""

    async def once(self) -> None:
        """A pass. Raises Full, and what a result store raises."""
        if count := await self.prune(await self.clock(time.time(), time.monotonic())):
            log.info("removed %d finished jobs and their results", count)

    async def clock(self, now_s: float, monotonic_s: float) -> float:
        """Move the pruner's clock, and return its time in Unix seconds."""
        stored = await self._journal.get_meta(CLOCK_KEY)
        last_s = float(stored) if stored else (await self._journal.run(_newest_ends))[0]
        allowed_s = CLOCK_RATE * max(0.0, monotonic_s - self._passed_s)
        moved_s = now_s if last_s is None else min(now_s, last_s + allowed_s)
        self._passed_s = monotonic_s
        await self._journal.set_meta(CLOCK_KEY, repr(moved_s).encode())
        if now_s - moved_s > CLOCK_LAG_S:
            hours = (now_s - moved_s) / 3600
            log.warning("the clock is %.0f hours ahead of when a controller last ran here: jobs age slowly", hours)
        return moved_s

    async def prune(self, now_s: float) -> int:
        """Remove the finished jobs beyond the limits, oldest first. Returns how many.

        What the store doesn't let go stays until the next pass, and keeps nothing else. Raises Full, and at the end the
        first of the store's errors.
        """
        cutoff_s = now_s - self._keep.days * SECONDS_A_DAY if self._keep.days else float("-inf")
        removed = 0
        stuck: set[str] = set()
        errors: list[Exception] = []
        while doomed := await self._journal.run(functools.partial(_doomed, cutoff_s, self._keep, frozenset(stuck))):
            for entry in doomed:
                try:
                    await self._thread.run("", functools.partial(results.remove, self._result_url, entry.job))
                except Exception as error:  # noqa: BLE001  (stores raise whatever their libraries do)
                    stuck.add(entry.job.job_id)
                    errors.append(error)
            gone = [entry.job.job_id for entry in doomed if entry.job.job_id not in stuck]
            await self._journal.delete(gone)
            removed += len(gone)
            if len(stuck) >= STUCK_MAX:
                break  # the store takes none, it seems
        while await self._journal.run(lambda db: db.shrink()):
            pass
        if errors:
            raise errors[0]
        return removed


def _doomed(cutoff_s: float, keep: Keep, stuck: frozenset[str], db: Database) -> list[JournalEntry]:
    """A batch of what goes now, oldest first, without what is `stuck`."""
    limit = BATCH_JOBS + len(stuck)
    sql = "SELECT sequence FROM jobs WHERE ended_s < ? ORDER BY ended_s LIMIT ?"
    sequences = [row[0] for row in db.execute(sql, (cutoff_s, limit))]
    sql = "SELECT client, COUNT(*), SUM(kept_bytes) FROM jobs WHERE ended_s IS NOT NULL GROUP BY client"
    for client, count, size_bytes in db.execute(sql).fetchall():
        if len(sequences) >= limit:
            break
        if (keep.jobs and count > keep.jobs) or (keep.size_bytes and size_bytes > keep.size_bytes):
            sequences += _excess(db, client, keep)
    sequences = list(dict.fromkeys(sequences))[:limit]
    if not sequences:
        return []
    rows = db.execute(f"SELECT entry FROM jobs WHERE sequence IN ({marks(sequences)}) ORDER BY ended_s", sequences)
    found = (JournalEntry.FromString(row[0]) for row in rows)
    return [entry for entry in found if entry.job.job_id not in stuck]


def _excess(db: Database, client: str, keep: Keep) -> list[int]:
    """A client's finished jobs beyond its bounds, oldest first: those behind the newest that fit."""
    sql = "SELECT sequence, kept_bytes FROM jobs WHERE client = ? AND ended_s IS NOT NULL ORDER BY ended_s DESC"
    total_bytes = 0
    found = []
    for count, (sequence, size_bytes) in enumerate(db.execute(sql, (client,)), 1):
        total_bytes += size_bytes
        if (keep.jobs and count > keep.jobs) or (keep.size_bytes and total_bytes > keep.size_bytes and count > 1):
            found.append(sequence)
    return found[::-1]


def _newest_ends(db: Database) -> list[float | None]:
    """When the last job ended, in a row of one: None where none has."""
    return list(db.execute("SELECT MAX(ended_s) FROM jobs").fetchone())


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
